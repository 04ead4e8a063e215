"""Whether a journal is one history: the rules of the engine, checked on what it has written.

`Verifier` takes the objects of a journal one by one, so every prefix is checked. It knows nothing of how the
core comes to its decisions: it is the core's judge in the simulator, and a user's of a real store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence

from exoflow.blobs import blob_folder
from exoflow.codec import Blob
from exoflow.effects import effect_key
from exoflow.errors import CorruptRecord, DefinitionError
from exoflow.journal import JournalObject, plan_key, read_objects
from exoflow.options import Checkpoint
from exoflow.plan import Iteration, LoopSpec, Plan, TaskSpec
from exoflow.records import Cleared, Committed, Finished, History, Intended, Record, Retired, Started, Status
from exoflow.steps import Get, List, Steps

Expand = Callable[[LoopSpec, int, str], Iteration]


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a store: where (a journal object's number, or a key), and what."""

    where: str
    what: str

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.where}: {self.what}"


class Verifier:
    """Checks a journal as it grows.

    Parameters
    ----------
    plan : Plan or None
        The workflow; without it the order of commits cannot be checked.
    expand : callable or None
        Makes the tasks of a loop's iteration; without it the order inside iterations is not checked.

    Attributes
    ----------
    problems : list of Problem
        What was found so far.
    history : History
        What the objects so far amount to.
    """

    def __init__(self, plan: Plan | None, expand: Expand | None = None) -> None:
        self.problems: list[Problem] = []
        self.history = History()
        self._tasks = None if plan is None else _Tasks(plan, expand)
        self._last: JournalObject | None = None
        self._ends: dict[str, int] = {}

    def add(self, found: JournalObject) -> None:
        """Take in the next object; the first is number 1 or a fold."""
        before = len(self.problems)
        self._check_chain(found)
        header = found.header
        if header.kind == "claim":
            self.history.reopen()
        records: Iterable[Record] = found.records
        if header.kind == "fold":
            records = self._fold(found)
        for record in records:
            self._check_end(record)
            self.history.add([record])
        # All records of one object count at once, so each may stand on the others.
        for record in records:
            self._check(record)
        self._last = found
        where = f"journal object {header.number}"
        self.problems[before:] = [Problem(where, each.what) for each in self.problems[before:]]

    def _say(self, what: str) -> None:
        self.problems.append(Problem("", what))

    # --- the chain --------------------------------------------------------------------------------------

    def _check_chain(self, found: JournalObject) -> None:
        header, last = found.header, self._last
        if last is None:
            if header.number != 1 and header.kind != "fold":
                self._say("the journal begins neither with its first object nor with a fold")
            return
        known = last.header
        if header.number != known.number + 1 or header.previous != last.sha256:
            self._say("it does not follow the object before it")
        if header.kind == "claim":
            if header.generation != known.generation + 1:
                self._say(f"a claim opens generation {header.generation} after {known.generation}")
        elif (header.generation, header.owner) != (known.generation, known.owner):
            self._say(f"{header.owner} writes in a generation that it does not own")
        base = header.number if header.kind == "fold" else known.base
        if header.base != base:
            self._say(f"it names {header.base} as the newest fold, which is {base}")

    def _fold(self, found: JournalObject) -> list[Record]:
        """Replace the history by the fold's, and return the records that are new in it."""
        if self._last is None:
            self.history.add(found.records)
            self._note_ends(found.records)
            return []
        retired = {record.loop: record for record in found.records if isinstance(record, Retired)}
        known = {_name(record): record for record in self.history.records()}
        repeated: dict[tuple[str, ...], Record] = {}
        new: list[Record] = []
        for record in found.records:
            name = _name(record)
            # What is said again of the same thing, after the repetition, is news.
            if name in repeated or (name not in known and not isinstance(record, Retired)):
                new.append(record)
            else:
                repeated[name] = record
        for name, record in known.items():
            again = repeated.get(name)
            if isinstance(record, Retired):
                if not isinstance(again, Retired) or again.iteration < record.iteration:
                    self._say(f"the fold takes back iterations of loop {record.loop!r} that had left the journal")
            elif again is None:
                if not _has_left(record, retired):
                    self._say(f"the fold loses {_words(record)}")
            elif not _same(record, again):
                self._say(f"the fold changes {_words(record)}")
        self.history = History(barren_claims=self.history.barren_claims)
        self.history.add(repeated.values())
        return new

    # --- records ----------------------------------------------------------------------------------------

    def _check_end(self, record: Record) -> None:
        """Check a record against what was there before it."""
        history = self.history
        finished = history.finished
        if finished is not None:
            self._say(f"{_words(record)} comes after the end of the workflow")
        match record:
            case Started():
                if history.started is not None:
                    self._say("the workflow starts twice")
            case Committed():
                known = (history.committed if record.resumable else history.snapshots).get(record.task)
                if known is not None:
                    same = "again" if _same(known, record) else "again, with another outcome"
                    self._say(f"{record.task!r} is committed {same}")
                spec = self.spec(record)
                external = record.resumable and spec is not None and spec.options.external
                if external and record.task not in history.intended:
                    self._say(f"the effect of {record.task!r} is complete and was never announced")
            case Intended():
                self._check_intent(record)
            case Cleared():
                if record.task not in history.intended:
                    self._say(f"an effect of {record.task!r} is cleared that was not announced")

    def _check_intent(self, intent: Intended) -> None:
        history = self.history
        if intent.task in history.intended:
            self._say(f"the effect of {intent.task!r} is announced twice")
        if intent.task in history.committed:
            self._say(f"the effect of {intent.task!r} is announced although the task is committed")
        cleared = history.cleared.get(intent.task)
        generation = 0 if cleared is None else cleared.generation
        if intent.generation != generation:
            self._say(f"the effect of {intent.task!r} is announced as generation {intent.generation}, not {generation}")
        if history.started is not None:
            key = effect_key(history.started.nonce, intent.task, intent.iteration, generation)
            if intent.key != key:
                self._say(f"the effect of {intent.task!r} has the key {intent.key} instead of {key}")

    def _check(self, record: Record) -> None:
        """Check a record against everything up to and including its own object."""
        self._check_past_the_end(record)
        match record:
            case Committed() if record.resumable:
                self._check_ancestors(record)
            case Intended():
                self._check_ancestors(record)
                self._check_inputs(record)
            case Finished() if record.status is Status.SUCCESSFUL:
                self._check_success()
            case Finished() if record.status is Status.IN_DOUBT:
                if not any(self.history.in_doubt(task) for task in self.history.intended):
                    self._say("the workflow ends in doubt, and no effect is")

    def _check_success(self) -> None:
        for task in self.history.intended:
            if self.history.in_doubt(task):
                self._say(f"the workflow is successful although nothing says what became of the effect of {task!r}")
        if self._tasks is None:
            return
        root = self._tasks.plan.root
        if root not in self.history.committed and root not in self._ends:
            self._say("the workflow is successful without a result")

    def _check_past_the_end(self, record: Record) -> None:
        self._note_ends([record])
        if not isinstance(record, Committed | Intended) or record.loop is None:
            return
        end = self._ends.get(record.loop)
        if end is not None:
            late = [each for each in self._of_loop(record.loop) if each.iteration > end]
            for each in late[:1]:
                self._say(f"{_words(each)} lies past iteration {end}, which ended loop {record.loop!r}")

    def _of_loop(self, loop: str) -> Iterator[Committed | Intended]:
        history = self.history
        for records in (history.committed, history.snapshots, history.intended):
            yield from (record for record in records.values() if record.loop == loop)

    def _note_ends(self, records: Iterable[Record]) -> None:
        for record in records:
            if isinstance(record, Committed) and record.carry and record.loop is not None:
                last = None if self._tasks is None else self._tasks.iterations(record.loop)
                if record.stop or record.iteration == last:
                    self._ends[record.loop] = record.iteration

    # --- what must come before --------------------------------------------------------------------------

    def spec(self, record: Committed | Intended) -> TaskSpec | None:
        """Return the task that a record is about, if the plan is known."""
        return (
            None if self._tasks is None else self._tasks.find(record.task, record.loop, record.iteration, self.history)
        )

    def _check_ancestors(self, record: Committed | Intended) -> None:
        """Check the prefix rule: what a record was computed from is committed, or would come out the same."""
        spec = self.spec(record)
        if spec is None:
            return
        assert self._tasks is not None
        seen = {spec.id}
        stack = self._tasks.upstream(spec, self._ends)
        while stack:
            upstream = stack.pop()
            if upstream is None or upstream.id in seen or self._stands(upstream):
                continue
            seen.add(upstream.id)
            if not upstream.options.deterministic or upstream.options.checkpoint is not Checkpoint.NONE:
                self._say(f"{_words(record)} comes before its ancestor {upstream.id!r} is committed")
                return
            stack += self._tasks.upstream(upstream, self._ends)

    def _stands(self, spec: TaskSpec) -> bool:
        if spec.id in self.history.committed:
            return True
        retired = None if spec.loop is None else self.history.retired.get(spec.loop)
        return retired is not None and spec.iteration <= retired.iteration

    def _check_inputs(self, intent: Intended) -> None:
        spec = self.spec(intent)
        if spec is None or self._tasks is None:
            return
        for given in spec.inputs:
            task = self._tasks.behind(given.task, spec, self._ends)
            if task is None or (task.loop is not None and task.iteration == 0):
                continue
            if given.snapshot:
                records = (self.history.committed.get(task.id), self.history.snapshots.get(task.id))
                durable = any(record is not None and record.state is not None for record in records)
            else:
                durable = self._stands(task)
            if not durable:
                self._say(f"the effect of {intent.task!r} is announced before its input {given.task!r} is durable")


class _Tasks:
    """The tasks of a plan by name, those of loops expanded as they are asked for."""

    def __init__(self, plan: Plan, expand: Expand | None) -> None:
        self.plan = plan
        self._expand = expand
        self._static = {spec.id: spec for spec in plan.tasks}
        self._loops = {loop.id: loop for loop in plan.loops}
        self._iterations: dict[str, dict[int, Iteration]] = {loop.id: {} for loop in plan.loops}

    def iterations(self, loop: str) -> int | None:
        return self._loops[loop].iterations

    def find(self, task: str, loop: str | None, iteration: int, history: History) -> TaskSpec | None:
        if loop is None:
            return self._static.get(task)
        expanded = self._iteration(loop, iteration, history)
        return None if expanded is None else next((spec for spec in expanded.tasks if spec.id == task), None)

    def _iteration(self, loop: str, number: int, history: History) -> Iteration | None:
        known = self._iterations[loop]
        if number not in known and self._expand is not None:
            retired = history.retired.get(loop)
            first = max(known, default=0 if retired is None else retired.iteration) + 1
            for each in range(first, number + 1):
                known[each] = self._expand(self._loops[loop], each, self._carry_before(loop, each, retired))
        return known.get(number)

    def _carry_before(self, loop: str, number: int, retired: Retired | None) -> str:
        if number - 1 in self._iterations[loop]:
            return self._iterations[loop][number - 1].carry
        if retired is not None and retired.iteration == number - 1:
            return retired.carry
        return self._loops[loop].carry_task or f"{loop}[0]"

    def upstream(self, spec: TaskSpec, ends: dict[str, int]) -> list[TaskSpec | None]:
        """Return the tasks that a task comes after, the call and the turn before it included."""
        names = [*(given.task for given in spec.inputs), *spec.after]
        found = [self.behind(name, spec, ends) for name in names]
        if spec.actor is not None and spec.stateful:
            found.append(self._call_before(spec))
        if spec.max_behind is not None:
            found.append(self._turn_before(spec))
        return found

    def _turn_before(self, spec: TaskSpec) -> TaskSpec | None:
        near = self._iterations.get(spec.loop or "", {})
        for number in sorted((number for number in near if number < spec.iteration), reverse=True):
            for task in near[number].tasks:
                if task.turns == spec.turns:
                    return task
        return None

    def behind(self, name: str, reader: TaskSpec, ends: dict[str, int]) -> TaskSpec | None:
        """Return the task that makes an input; a loop's is the carry that ended it."""
        if name in self._static:
            return self._static[name]
        if name in self._loops:
            ended = self._iterations[name].get(ends.get(name, -1))
            return None if ended is None else _named(ended, ended.carry)
        near = self._iterations.get(reader.loop or "", {})
        for number in (reader.iteration, reader.iteration - 1):
            if number in near and (found := _named(near[number], name)) is not None:
                return found
        return None

    def _call_before(self, spec: TaskSpec) -> TaskSpec | None:
        if spec.loop is None:
            calls = [task for task in self.plan.tasks if task.actor == spec.actor and task.stateful]
            return None if self._loops else _before(calls, spec)
        near = self._iterations[spec.loop]
        calls = []
        for number in (spec.iteration - 1, spec.iteration):
            if number in near:
                calls += [task for task in near[number].tasks if task.actor == spec.actor and task.stateful]
        return _before(calls, spec)


def _before(calls: list[TaskSpec], spec: TaskSpec) -> TaskSpec | None:
    place = calls.index(spec)
    return calls[place - 1] if place else None


def _named(iteration: Iteration, task: str) -> TaskSpec | None:
    return next((spec for spec in iteration.tasks if spec.id == task), None)


def _name(record: Record) -> tuple[str, ...]:
    """Return what a record is about: two records about the same thing are one, or contradict each other."""
    match record:
        case Committed():
            return ("committed" if record.resumable else "snapshot", record.task)
        case Intended() | Cleared():
            return (type(record).__name__, record.task)
        case Retired():
            return ("retired", record.loop)
        case Started() | Finished():
            return (type(record).__name__,)


def _same(one: Record, other: Record) -> bool:
    """Whether two records say the same; the time of a commit becomes known only later."""
    if isinstance(one, Committed) and isinstance(other, Committed):
        return dataclasses.replace(one, committed_at=None) == dataclasses.replace(other, committed_at=None)
    return one == other


def _has_left(record: Record, retired: dict[str, Retired]) -> bool:
    """Whether a record belongs to iterations that have left the journal."""
    loop = getattr(record, "loop", None)
    return loop in retired and getattr(record, "iteration", 0) <= retired[loop].iteration


def _words(record: Record) -> str:
    match record:
        case Committed() if record.resumable:
            return f"the commit of {record.task!r}"
        case Committed():
            return f"the snapshot of {record.task!r}"
        case Intended():
            return f"the intent of {record.task!r}"
        case Cleared():
            return f"the end of the intent of {record.task!r}"
        case Retired():
            return f"the end of iterations of loop {record.loop!r}"
        case Started():
            return "the start"
        case Finished():
            return "the end"


# --- a store ----------------------------------------------------------------------------------------------


def verify(workflow_id: str, expand: Expand | None = None) -> Steps[list[Problem]]:
    """Check a workflow in its store: its journal from the newest fold on, and every blob that counts.

    Raises
    ------
    WorkflowNotFound, StorageUnavailable
    """
    try:
        objects = yield from read_objects(workflow_id)
    except CorruptRecord as error:
        return [Problem(error.key, str(error))]
    started = next((each for found in objects for each in found.records if isinstance(each, Started)), None)
    problems: list[Problem] = []
    plan = None
    if started is None:
        problems.append(Problem("journal object 1", "nothing says which plan the workflow has"))
    else:
        plan = yield from _read_plan(workflow_id, started.digest, problems)
    try:
        verifier = _checked(objects, plan, expand)
    except DefinitionError as error:
        message = f"the code of a loop cannot be loaded, so the order inside its iterations is not checked: {error}"
        problems.append(Problem("plan", message))
        verifier = _checked(objects, plan, None)
    problems += verifier.problems
    for record in (*verifier.history.committed.values(), *verifier.history.snapshots.values()):
        for blob in record.blobs:
            problems += yield from _check_blob(workflow_id, record.task, blob)
    return problems


def _checked(objects: Sequence[JournalObject], plan: Plan | None, expand: Expand | None) -> Verifier:
    verifier = Verifier(plan, expand)
    for found in objects:
        verifier.add(found)
    return verifier


def _read_plan(workflow_id: str, digest: str, problems: list[Problem]) -> Steps[Plan | None]:
    key = plan_key(workflow_id, digest)
    data = yield Get(key)
    try:
        plan = None if data is None else Plan.from_json(json.loads(data))
    except (ValueError, KeyError, TypeError):
        plan = None
    if plan is None or plan.digest != digest:
        problems.append(Problem(key, "the plan is missing" if data is None else "the plan is damaged"))
        return None
    return plan


def _check_blob(workflow_id: str, task: str, blob: Blob) -> Steps[list[Problem]]:
    key = f"{blob_folder(workflow_id)}/{blob.name}"
    data = yield Get(key)
    if data is None:
        return [Problem(key, f"the blob is missing; {task!r} needs it")]
    if len(data) != blob.size or hashlib.sha256(data).hexdigest() != blob.sha256:
        return [Problem(key, f"the blob is damaged; {task!r} needs it")]
    return []


def workflow_ids() -> Steps[list[str]]:
    """Return the ids of all workflows of a store, sorted."""
    keys: list[str] = yield List("workflows")
    return sorted({key.split("/")[1] for key in keys if "/journal/" in key})
