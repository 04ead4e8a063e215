"""The pure core: one workflow as a state machine. ``apply(event)`` returns instructions; nothing else acts.

A task is described by two independent facts. Its *phase* says how far its body is: waiting, intending (an
external task whose intent is being written), running, produced. Its *durability* says how far its
checkpoint is: unwanted, wanted, ready, writing, committed. Rules of the design (section 4):

- commit: a record becomes ready only when its blobs are durable, and counts only when appended;
- prefix: a record is appended only in or after the object that commits every ancestor whose checkpoint is
  wanted, and wanting a checkpoint makes every nondeterministic ancestor's wanted too;
- modes: a task may start while its inputs are still running, except behind a sync checkpoint, which must be
  committed, and except an external task, whose inputs must all be committed;
- an iteration's records and effects wait until the iteration before is known not to have ended the loop;
- losing a durable actor rolls all of them back to what is committed, by the same analysis that recovers a
  workflow after a crash.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from exoflow.codec import Blob, encode
from exoflow.messages import (
    ActorLost,
    Append,
    Appended,
    Archive,
    Call,
    Collect,
    Complete,
    Event,
    Failed,
    Instruction,
    Keep,
    Live,
    Lost,
    Persist,
    Persisted,
    PersistFailed,
    Produced,
    Refused,
    Release,
    Report,
    Source,
    StartActor,
    StopActor,
    Submit,
    Wake,
    Woken,
)
from exoflow.options import Checkpoint, TaskOptions
from exoflow.plan import ActorSpec, Input, Iteration, LoopSpec, Plan, TaskSpec
from exoflow.records import Committed, Finished, History, Intended, Record, Retired, Status, Value
from exoflow.recovery import Action, actions, restore_points

MAX_LOSSES = 3
MAX_REFUSALS = 20
FOLD_EVERY = 64
ARCHIVE_EVERY = 4096

Expand = Callable[[LoopSpec, int, str], Iteration]


class Phase(enum.Enum):
    """How far a task's body is."""

    WAITING = enum.auto()
    INTENDING = enum.auto()
    RUNNING = enum.auto()
    PRODUCED = enum.auto()
    SKIPPED = enum.auto()
    VOID = enum.auto()


class Durability(enum.IntEnum):
    """How far a checkpoint is."""

    UNWANTED = 0
    WANTED = 1
    READY = 2
    WRITING = 3
    COMMITTED = 4


_NO_ARGS = encode([[], {}])
_SETTLED = (Phase.PRODUCED, Phase.SKIPPED, Phase.VOID)


@dataclasses.dataclass(slots=True, eq=False)
class TaskState:
    """One task: its spec, where it stands, and who waits for it."""

    spec: TaskSpec
    order: int
    phase: Phase = Phase.WAITING
    durability: Durability = Durability.UNWANTED
    snapshot: Durability = Durability.UNWANTED
    attempt: int = 0
    chained: bool = True
    sleeping: bool = False
    held: bool = False
    intended: bool = False
    replayed: bool = False
    state_forced: bool = False
    branch: bool = False
    report: Report | None = None
    record: Committed | None = None
    snapshot_record: Committed | None = None
    consumers: dict[str, None] = dataclasses.field(default_factory=dict)
    wanted_ancestors: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Task id."""
        return self.spec.id

    @property
    def options(self) -> TaskOptions:
        """The annotations."""
        return self.spec.options


@dataclasses.dataclass(slots=True, eq=False)
class ActorState:
    """One actor: its incarnation, and the calls on it that still matter, in order."""

    spec: ActorSpec
    incarnation: int = 0
    started: bool = False
    restore: Committed | None = None
    base_token: str = ""
    calls: list[str] = dataclasses.field(default_factory=list)
    uncovered: int | None = None

    @property
    def durable(self) -> bool:
        """Whether its calls form a chain of states."""
        return self.spec.durable


@dataclasses.dataclass(slots=True, eq=False)
class LoopState:
    """One loop: which iterations exist and how far they are."""

    spec: LoopSpec
    next: int = 1
    last_carry: str = ""
    done: int = 0
    produced: int = 0
    known: int = 0
    ended_by: str | None = None
    iterations: dict[int, Iteration] = dataclasses.field(default_factory=dict)
    consumers: dict[str, None] = dataclasses.field(default_factory=dict)
    rows: list[Committed] = dataclasses.field(default_factory=list)


class WorkflowState:
    """One workflow. Feed it events, obey its instructions.

    Parameters
    ----------
    plan : Plan
        The workflow.
    history : History
        What the journal says so far, this owner's claim included.
    expand : callable
        ``expand(loop, iteration, previous_carry)`` makes the tasks of an iteration; pure.
    replicas : mapping, optional
        Group sizes that override the plan's, by actor.
    fold_every : int
        Objects, or iterations if these are more, after which a loop's complete iterations leave the journal.
    """

    def __init__(
        self,
        plan: Plan,
        history: History,
        expand: Expand,
        *,
        replicas: Mapping[str, int] | None = None,
        fold_every: int = FOLD_EVERY,
    ) -> None:
        self._plan = plan
        self._history = history
        self._expand = expand
        self._replicas = dict(replicas or {})
        self._fold_every = fold_every
        self._out: list[Instruction] = []
        self._agenda: deque[str] = deque()
        self._attempts = 0
        self._incarnations = 0
        self._orders = 0
        self._tries: dict[str, int] = {}
        self._losses: dict[str, int] = {}
        self._refusals: dict[str, int] = {}
        self._since_fold = 0
        self._writing: list[Record] | None = None
        self._writing_fold = False
        self._collectable: list[Blob] = []
        self._pending_intents: list[Intended] = []
        self._rollback_reason: str | None = None
        self._failure: tuple[str, str] | None = None
        self._finishing = False
        self.finished = False
        self._tasks: dict[str, TaskState] = {}
        self._ready: dict[str, TaskState] = {}
        self._actors: dict[str, ActorState] = {}
        self._loops: dict[str, LoopState] = {}
        self._deferred: list[TaskSpec] = []
        self._read_later: set[str] = set()
        self._unforced: list[Committed] = []
        self._buffered: list[Event] = []
        self._loops_above = _loops_above(plan)
        self._actors_after_loops = {task.actor for task in plan.tasks if self._loops_above[task.id]}
        self._loops_before_loops = {above for loop in plan.loops for above in self._loops_above[loop.id]}

    # --- the outside ------------------------------------------------------------------------------------

    def start(self) -> list[Instruction]:
        """Return the first instructions."""
        if self._history.finished is not None:
            self._complete(self._history.finished)
        else:
            self._build({})
        return self._settle()

    def apply(self, event: Event) -> list[Instruction]:
        """Take in an event and return what to do about it."""
        if not self.finished:
            self._handle(event)
        return self._settle()

    def _handle(self, event: Event) -> None:
        if self._rollback_reason is not None and not isinstance(event, Appended):
            self._buffered.append(event)
            return
        match event:
            case Produced():
                self._on_produced(event)
            case Failed():
                self._on_failed(event)
            case Refused():
                self._on_refused(event)
            case Lost():
                self._on_lost(event)
            case ActorLost():
                self._on_actor_lost(event)
            case Persisted():
                self._on_persisted(event)
            case PersistFailed():
                if self._current(event.task, event.attempt) is not None:
                    self._fail(event.task, f"its checkpoint failed: {event.error}")
            case Appended():
                self._on_appended(event.at)
            case Woken():
                self._on_woken(event.task)

    @property
    def history(self) -> History:
        """What the journal says, as far as appends were acknowledged."""
        return self._history

    def task(self, task_id: str) -> TaskState | None:
        """Return a task's state while it is in memory."""
        return self._tasks.get(task_id)

    def check_invariants(self) -> None:
        """Assert what must hold between two events; the simulator calls it after each."""
        for task in self._tasks.values():
            committed = task.durability is Durability.COMMITTED
            assert (task.record is not None) == (task.durability >= Durability.READY), task.id
            assert not (task.phase is Phase.RUNNING and task.attempt == 0), task.id
            if committed and task.spec.id in self._history.committed:
                for upstream in task.wanted_ancestors:
                    ancestor = self._tasks.get(upstream)
                    assert ancestor is None or ancestor.durability is Durability.COMMITTED, (
                        task.id,
                        upstream,
                    )
        for loop in self._loops.values():
            if loop.ended_by is None:
                assert loop.next - 1 <= max(loop.done + loop.spec.max_in_flight, loop.known), loop.spec.id

    # --- building ---------------------------------------------------------------------------------------

    def _build(self, survivors: Mapping[str, TaskState]) -> None:
        """Lay out all tasks from the plan and the history, keeping attempts that nothing has undone."""
        self._tasks, self._ready, self._loops = {}, {}, {}
        for actor in self._actors.values():
            if actor.durable:
                actor.calls, actor.started, actor.uncovered = [], False, None
        for actor_spec in self._plan.actors:
            self._add_actor(actor_spec)

        for loop_spec in self._plan.loops:
            self._loops[loop_spec.id] = LoopState(loop_spec)
        iterations: list[Iteration] = []
        for loop in self._loops.values():
            self._open_loop(loop)
            if self._reachable(loop.spec.id):
                iterations += self._committed_iterations(loop)
            loop.ended_by = self._ending(loop)
        for iteration in iterations:
            for actor_spec in iteration.actors:
                self._add_actor(actor_spec)
        self._defer([spec for spec in self._plan.tasks if not self._reachable(spec.id)])
        deferred = {spec.id for spec in self._deferred}
        static = [spec for spec in self._plan.tasks if spec.id not in deferred]
        specs = self._in_order(static, [spec for iteration in iterations for spec in iteration.tasks])

        branches = {*self._plan.branches, *(name for each in iterations for name in each.branches)}
        decided = self._decide(specs, branches)
        for loop in self._loops.values():
            self._register_first_carry(loop)
        for spec in specs:
            survivor = survivors.get(spec.id)
            self._register(spec, decided[spec.id], survivor, branch=spec.id in branches)
        for spec in self._deferred:
            self._note_needs(spec)
        for loop in self._loops.values():
            self._advance(loop)

    def _in_order(self, static: Sequence[TaskSpec], repeated: Sequence[TaskSpec]) -> list[TaskSpec]:
        """Merge tasks outside of loops with those of iterations, so that all come after their inputs."""
        ordered: list[TaskSpec] = []
        waiting, passed = list(static), set[str]()
        for loop_id in (*self._loops, None):
            ordered += [spec for spec in waiting if self._loops_above[spec.id] <= passed]
            waiting = [spec for spec in waiting if not self._loops_above[spec.id] <= passed]
            if loop_id is not None:
                ordered += [spec for spec in repeated if spec.loop == loop_id]
                passed.add(loop_id)
        return ordered

    def _decide(self, specs: Sequence[TaskSpec], branches: set[str]) -> dict[str, Action]:
        """Choose what recovery does with each task, and what each durable actor starts from."""
        history = self._history
        open_loops = [loop for loop in self._loops.values() if loop.ended_by is None]
        # Every carry is wanted, read or not: it says whether its loop goes on.
        carries = {each.carry for loop in open_loops for each in loop.iterations.values()}
        last = {loop.last_carry for loop in open_loops}
        first = {name for loop in open_loops if loop.next == 1 for name in loop.spec.after}
        wanted = {self._plan.root, *branches, *carries, *last, *first, *self._read_later}
        goes_on = set(self._actors) if open_loops or self._deferred else set()
        decided = actions(specs, history.committed, wanted, goes_on)
        states = history.newest_states()
        points = restore_points(specs, decided, history.committed, states)
        for actor in self._actors.values():
            if actor.durable:
                actor.restore = points.get(actor.spec.id, states.get(actor.spec.id))
                actor.base_token = "" if actor.restore is None else "restored"
        return decided

    def _reachable(self, name: str) -> bool:
        """Whether every loop above a static task or a loop has ended, so that it may be laid out."""
        return all(self._loops[above].ended_by is not None for above in self._loops_above[name])

    def _defer(self, specs: list[TaskSpec]) -> None:
        """Note which tasks cannot be laid out before some loop has ended, and what they will read."""
        self._deferred = specs
        undone = [spec for spec in specs if spec.id not in self._history.committed]
        self._read_later = {name for spec in undone for name in _upstream(spec)}

    def _add_actor(self, spec: ActorSpec) -> None:
        if spec.id in self._replicas and spec.replicas is not None:
            spec = dataclasses.replace(spec, replicas=self._replicas[spec.id])
        self._actors.setdefault(spec.id, ActorState(spec))

    def _open_loop(self, loop: LoopState) -> None:
        retired = self._history.retired.get(loop.spec.id)
        if retired is not None:
            loop.next, loop.last_carry = retired.iteration + 1, retired.carry
            loop.done = loop.produced = retired.iteration
        else:
            loop.last_carry = loop.spec.carry_task or f"{loop.spec.id}[0]"

    def _committed_iterations(self, loop: LoopState) -> Iterator[Iteration]:
        """Expand the iterations that the history knows something of."""
        records = self._history.committed.values()
        loop.known = max((record.iteration for record in records if record.loop == loop.spec.id), default=0)
        while loop.next <= loop.known:
            number = loop.next
            iteration = self._expand_next(loop)
            record = self._history.committed.get(iteration.carry)
            if record is not None and loop.done == number - 1:
                loop.done = loop.produced = number
            yield iteration
            if self._ending(loop) is not None:
                return

    def _expand_next(self, loop: LoopState) -> Iteration:
        iteration = self._expand(loop.spec, loop.next, loop.last_carry)
        loop.iterations[loop.next] = iteration
        loop.last_carry = iteration.carry
        loop.next += 1
        return iteration

    def _ending(self, loop: LoopState) -> str | None:
        """Return the committed carry that ended the loop, if one did."""
        record = self._history.committed.get(loop.last_carry)
        if record is None or not record.carry:
            return None
        return record.task if record.stop or record.iteration == loop.spec.iterations else None

    def _register_first_carry(self, loop: LoopState) -> None:
        """Make the constant or committed carry that the first expanded iteration reads a task."""
        retired = self._history.retired.get(loop.spec.id)
        if retired is not None:
            record = self._history.committed[retired.carry]
        elif loop.spec.carry is not None:
            value = Value.inline(loop.spec.carry)
            record = Committed(f"{loop.spec.id}[0]", 0, value, loop=loop.spec.id)
        else:
            return
        self._orders += 1
        spec = TaskSpec(record.task, loop.spec.carry or _NO_ARGS, (), (), TaskOptions(), loop=loop.spec.id)
        self._tasks[record.task] = TaskState(spec, self._orders, Phase.PRODUCED, Durability.COMMITTED, record=record)

    def _register(
        self, spec: TaskSpec, action: Action, survivor: TaskState | None = None, *, branch: bool = False
    ) -> None:
        """Add a task whose upstream is registered already."""
        self._orders += 1
        task = TaskState(spec, self._orders, branch=branch)
        self._tasks[spec.id] = task
        for upstream in _upstream(spec):
            producer = self._producer(upstream)
            consumers = self._loops[upstream].consumers if producer is None else producer.consumers
            consumers[spec.id] = None
        self._note_needs(spec)
        actor = self._durable_actor(task)
        if actor is not None:
            if actor.calls:
                self._tasks[actor.calls[-1]].consumers[spec.id] = None
            actor.calls.append(spec.id)
            if actor.uncovered is None:
                actor.uncovered = spec.iteration
        record = self._history.committed.get(spec.id)
        if record is not None:
            task.durability, task.record = Durability.COMMITTED, record
            task.replayed = action is Action.REPLAY
            if actor is not None and record.state is not None:
                self._cover(actor, spec)
        snapshot = self._history.snapshots.get(spec.id)
        if snapshot is not None:
            task.snapshot, task.snapshot_record = Durability.COMMITTED, snapshot
        task.intended = spec.id in self._history.intended
        match action:
            case Action.DONE:
                task.phase = Phase.PRODUCED
            case Action.SKIP:
                task.phase = Phase.SKIPPED
            case Action.RUN | Action.REPLAY:
                if survivor is not None:
                    task.phase, task.attempt, task.held = survivor.phase, survivor.attempt, survivor.held
                    task.report = survivor.report
                self._plan_checkpoint(task)
                self._agenda.append(spec.id)

    def _note_needs(self, spec: TaskSpec) -> None:
        """Ask of a task's inputs what it needs to be durable: snapshots, and all inputs of an effect."""
        for given in spec.inputs:
            producer = self._producer(given.task)
            if given.snapshot and producer is not None:
                self._want_snapshot(producer)
            elif spec.options.external and producer is not None:
                self._want(producer)

    def _plan_checkpoint(self, task: TaskState) -> None:
        if task.durability is Durability.COMMITTED:
            return
        if task.options.checkpoint is not Checkpoint.NONE or self._is_result(task):
            self._want(task)

    def _is_result(self, task: TaskState) -> bool:
        loop = self._loops.get(self._plan.root)
        return task.id == (self._plan.root if loop is None else loop.ended_by)

    # --- what may start ---------------------------------------------------------------------------------

    def _settle(self) -> list[Instruction]:
        """Carry every consequence through and hand over the instructions."""
        while not self.finished and self._rollback_reason is None:
            if self._agenda:
                self._try_start(self._agenda.popleft())
            elif not any(self._grow(loop) for loop in self._loops.values()):
                break
        if not self.finished and self._rollback_reason is None:
            self._append_what_is_ready()
        out, self._out = self._out, []
        return out

    def _grow(self, loop: LoopState) -> bool:
        """Expand one more iteration if the loop may have it."""
        spec = loop.spec
        if (
            self._failure is not None
            or loop.ended_by is not None
            or loop.next - 1 - loop.done >= spec.max_in_flight
            or (spec.iterations is not None and loop.next > spec.iterations)
            or self._producer(loop.last_carry) is None
            or not all(self._finished_before(upstream) for upstream in spec.after)
        ):
            return False
        iteration = self._expand_next(loop)
        for actor_spec in iteration.actors:
            self._add_actor(actor_spec)
        for task in iteration.tasks:
            record = self._history.committed.get(task.id)
            done = Action.REPLAY if task.stateful else Action.DONE
            self._register(task, Action.RUN if record is None else done, branch=task.id in iteration.branches)
        self._advance(loop)
        return True

    def _try_start(self, task_id: str) -> None:
        task = self._tasks.get(task_id)
        if task is None or task.phase is not Phase.WAITING or task.sleeping or self._failure is not None:
            return
        if not all(self._input_ready(task, given) for given in task.spec.inputs):
            return
        if not all(self._finished_before(upstream) for upstream in task.spec.after):
            return
        if not self._actor_ready(task):
            return
        if task.options.external and not task.intended:
            if self._confirmed(task):
                task.phase = Phase.INTENDING
                self._pending_intents.append(Intended(task.id, self._key(task), task.spec.loop, task.spec.iteration))
            return
        self._submit(task)

    def _input_ready(self, task: TaskState, given: Input) -> bool:
        upstream = self._producer(given.task)
        if upstream is None:
            return False
        if given.snapshot:
            return _durable_state(upstream) is not None
        if upstream.durability is Durability.COMMITTED:
            return True
        if task.options.external or upstream.options.checkpoint is Checkpoint.SYNC:
            return False
        if upstream.phase is Phase.RUNNING:
            return task.chained and self._same_side(task, upstream)
        return upstream.phase is Phase.PRODUCED

    def _same_side(self, task: TaskState, upstream: TaskState) -> bool:
        """Return whether both are in one loop: a consumer outside must wait until the carry says "stop"."""
        return upstream.spec.loop is None or task.spec.loop == upstream.spec.loop

    def _finished_before(self, upstream_id: str) -> bool:
        upstream = self._producer(upstream_id)
        if upstream is None or upstream.phase is Phase.SKIPPED:
            return upstream is not None
        committed = upstream.durability is Durability.COMMITTED
        return committed or (upstream.phase is Phase.PRODUCED and upstream.options.checkpoint is not Checkpoint.SYNC)

    def _actor_ready(self, task: TaskState) -> bool:
        actor = self._durable_actor(task)
        if actor is None:
            return True
        outlives = actor.spec.id in self._actors_after_loops or task.spec.loop in self._loops_before_loops
        if outlives and not self._confirmed(task):
            # A call past the end of the loop would leave a state that the calls after the loop must not see.
            return False
        previous = self._previous_call(actor, task)
        if previous is None:
            return True
        if previous.options.checkpoint is Checkpoint.SYNC and previous.durability is not Durability.COMMITTED:
            return False
        if previous.phase is Phase.RUNNING:
            return task.chained
        return previous.phase in (Phase.PRODUCED, Phase.SKIPPED)

    def _producer(self, task_id: str) -> TaskState | None:
        """Return the task behind an input; None while its loop has not ended or it is not laid out."""
        loop = self._loops.get(task_id)
        return self._tasks.get(task_id if loop is None else loop.ended_by or "")

    def _durable_actor(self, task: TaskState) -> ActorState | None:
        """Return the actor whose history this task is a step of."""
        return self._actors[task.spec.actor] if task.spec.actor is not None and task.spec.stateful else None

    def _previous_call(self, actor: ActorState, task: TaskState) -> TaskState | None:
        place = actor.calls.index(task.id)
        return self._tasks[actor.calls[place - 1]] if place else None

    def _submit(self, task: TaskState) -> None:
        self._attempts += 1
        task.attempt = self._attempts
        task.phase = Phase.RUNNING
        task.held = True
        spec = task.spec
        sources = tuple(self._source(task, given) for given in spec.inputs)
        self._out.append(Submit(spec, task.attempt, sources, self._keep(task), self._key(task), self._call(task)))
        self._wake_consumers(task)

    def _source(self, task: TaskState, given: Input) -> Source:
        upstream = self._producer(given.task)
        assert upstream is not None
        if given.snapshot:
            state = _durable_state(upstream)
            assert state is not None
            return Source(state)
        after_loop = upstream.spec.loop is not None and task.spec.loop != upstream.spec.loop
        if upstream.held and not upstream.replayed:
            return Source(Live(upstream.id, upstream.attempt), after_loop)
        value = self._kept_output(upstream)
        assert value is not None, upstream.id
        return Source(value, after_loop)

    def _kept_output(self, task: TaskState) -> Value | None:
        if task.record is not None and task.record.output is not None:
            return task.record.output
        return None if task.report is None else task.report.output

    def _keep(self, task: TaskState) -> Keep:
        if task.replayed:
            return Keep.NONE
        if task.options.checkpoint is Checkpoint.SYNC and task.durability is Durability.WANTED:
            return Keep.ALL
        archived = task.spec.loop is not None and self._loops[task.spec.loop].spec.archive is not None
        if task.durability is Durability.WANTED or not task.options.deterministic or archived:
            return Keep.SMALL
        return Keep.NONE

    def _call(self, task: TaskState) -> Call | None:
        if task.spec.actor is None:
            return None
        actor = self._actors[task.spec.actor]
        if not actor.started:
            self._incarnations += 1
            actor.incarnation, actor.started = self._incarnations, True
            restore = None if actor.restore is None else actor.restore.state
            self._out.append(StartActor(actor.spec, actor.incarnation, restore))
        if not task.spec.stateful:
            return Call(actor.incarnation, "", "", snapshot=False)
        previous = self._previous_call(actor, task)
        skipped = previous is None or previous.phase is Phase.SKIPPED or previous.attempt == 0
        expects = actor.base_token if skipped or previous is None else _token(previous)
        return Call(actor.incarnation, expects, _token(task), self._captures(task))

    def _captures(self, task: TaskState) -> bool:
        """Whether a call captures its actor's state."""
        if task.snapshot is Durability.WANTED:
            return True
        return self._keeps_state(task) and not task.replayed

    def _keeps_state(self, task: TaskState) -> bool:
        """Whether a call's checkpoint holds its actor's state."""
        options = task.options
        keeps = options.checkpoint is not Checkpoint.NONE and (options.snapshot or task.state_forced)
        return keeps and self._durable_actor(task) is not None

    def _key(self, task: TaskState) -> str:
        started = self._history.started
        nonce = "" if started is None else started.nonce
        return hashlib.sha256(f"{nonce}/{task.id}/{task.spec.iteration}/0".encode()).hexdigest()[:32]

    def _wake_consumers(self, task: TaskState) -> None:
        self._agenda.extend(task.consumers)

    # --- what bodies report -----------------------------------------------------------------------------

    def _current(self, task_id: str, attempt: int) -> TaskState | None:
        """Return the task if this attempt is the one that counts."""
        task = self._tasks.get(task_id)
        return task if task is not None and task.attempt == attempt else None

    def _on_produced(self, event: Produced) -> None:
        task = self._current(event.task, event.attempt)
        if task is None or task.phase is not Phase.RUNNING:
            return
        task.phase = Phase.PRODUCED
        task.report = event.report
        if event.report.stop and self._carried_loop(task) is None:
            self._fail(task.id, "it returned exoflow.stop, which only the task that makes a loop's carry may")
            return
        if event.report.wants_checkpoint:
            self._want_snapshot(task)
        loop = self._carried_loop(task)
        if loop is not None:
            self._carry_produced(loop, task)
        if self._is_result(task) and task.durability is Durability.UNWANTED:
            self._want(task)
        self._begin_checkpoint(task)
        self._begin_snapshot(task)
        self._wake_consumers(task)
        self._release_around(task)
        if loop is not None:
            self._advance(loop)

    def _carried_loop(self, task: TaskState) -> LoopState | None:
        """Return the loop whose carry the task makes."""
        loop = None if task.spec.loop is None else self._loops.get(task.spec.loop)
        iteration = None if loop is None else loop.iterations.get(task.spec.iteration)
        return loop if iteration is not None and iteration.carry == task.id else None

    def _carry_produced(self, loop: LoopState, task: TaskState) -> None:
        assert task.report is not None
        if task.report.stop or task.spec.iteration == loop.spec.iterations:
            self._end_loop(loop, task)

    def _end_loop(self, loop: LoopState, carry: TaskState) -> None:
        """Void the iterations past the end and lay out what comes after the loop."""
        loop.ended_by = loop.last_carry = carry.id
        for number in [number for number in loop.iterations if number > carry.spec.iteration]:
            for spec in loop.iterations.pop(number).tasks:
                void = self._tasks[spec.id]
                void.phase = Phase.VOID
                self._ready.pop(void.id, None)
                self._drop(void)
        carry.consumers.update(loop.consumers)
        reachable = [spec for spec in self._deferred if self._reachable(spec.id)]
        self._defer([spec for spec in self._deferred if not self._reachable(spec.id)])
        for spec in reachable:
            action = Action.DONE if spec.id in self._history.committed else Action.RUN
            self._register(spec, action, branch=spec.id in self._plan.branches)
        self._agenda.extend(loop.consumers)

    def _on_failed(self, event: Failed) -> None:
        task = self._current(event.task, event.attempt)
        if task is None or task.phase is not Phase.RUNNING:
            return
        self._tries[task.id] = self._tries.get(task.id, 0) + 1
        if self._tries[task.id] > task.options.retries:
            self._fail(task.id, event.error)
        elif self._durable_actor(task) is not None:
            self._begin_rollback(f"{task.id} failed: {event.error}")
        else:
            self._retry(task)
            pause = task.options.backoff * 2 ** (self._tries[task.id] - 1)
            if pause > 0:
                task.sleeping = True
                self._out.append(Wake(task.id, pause))

    def _on_woken(self, task_id: str) -> None:
        task = self._tasks.get(task_id)
        if task is not None and task.sleeping:
            task.sleeping = False
            self._agenda.append(task_id)

    def _on_refused(self, event: Refused) -> None:
        task = self._current(event.task, event.attempt)
        if task is None or task.phase is not Phase.RUNNING:
            return
        self._refusals[task.id] = self._refusals.get(task.id, 0) + 1
        if self._refusals[task.id] > MAX_REFUSALS:
            self._fail(task.id, f"it was refused {MAX_REFUSALS} times; this is a bug of exoflow")
        else:
            self._retry(task)

    def _on_lost(self, event: Lost) -> None:
        task = self._current(event.task, event.attempt)
        if task is None or task.phase is not Phase.RUNNING:
            return
        self._losses[task.id] = self._losses.get(task.id, 0) + 1
        if self._losses[task.id] > MAX_LOSSES:
            self._fail(task.id, f"its process died {MAX_LOSSES + 1} times: {event.reason}")
        elif self._durable_actor(task) is not None:
            # Other members may have run the call; only going back brings all to one state.
            self._begin_rollback(f"{task.id} was lost: {event.reason}")
        else:
            self._retry(task)

    def _retry(self, task: TaskState) -> None:
        """Return a task, and all that were chained to it, to waiting."""
        stack = [task]
        while stack:
            undone = stack.pop()
            if undone.held:
                self._out.append(Release(undone.id, undone.attempt))
            undone.phase, undone.attempt, undone.held = Phase.WAITING, 0, False
            undone.chained, undone.report = False, None
            self._agenda.append(undone.id)
            for name in undone.consumers:
                consumer = self._tasks.get(name)
                if consumer is not None and consumer.phase is Phase.RUNNING and consumer.attempt:
                    stack.append(consumer)

    def _fail(self, task_id: str, error: str) -> None:
        if self._failure is None:
            self._failure = (task_id, error)

    # --- losing actors ----------------------------------------------------------------------------------

    def _on_actor_lost(self, event: ActorLost) -> None:
        actor = self._actors.get(event.actor)
        if actor is None or not actor.started or actor.incarnation != event.incarnation:
            return
        name = f"actor {event.actor}"
        if actor.durable:
            self._losses["rollback"] = self._losses.get("rollback", 0) + 1
            if self._losses["rollback"] > MAX_LOSSES:
                self._fail(event.actor, f"it died {MAX_LOSSES + 1} times without progress: {event.reason}")
            else:
                self._begin_rollback(f"{name} died: {event.reason}")
            return
        self._losses[name] = self._losses.get(name, 0) + 1
        if self._losses[name] > MAX_LOSSES:
            self._fail(event.actor, f"its process died {MAX_LOSSES + 1} times: {event.reason}")
            return
        self._out.append(StopActor(event.actor, event.incarnation))
        actor.started = False
        for task in list(self._tasks.values()):
            if task.spec.actor == event.actor and task.phase is Phase.RUNNING:
                self._retry(task)

    def _begin_rollback(self, reason: str) -> None:
        """End the durable actors; go back once the append in flight has said what is committed."""
        self._rollback_reason = reason
        for actor in self._actors.values():
            if actor.durable and actor.started:
                self._out.append(StopActor(actor.spec.id, actor.incarnation))
                actor.started = False
        if self._writing is None:
            self._roll_back()

    def _roll_back(self) -> None:
        """Start again from what is committed, keeping attempts whose inputs all are."""
        self._rollback_reason = None
        survivors = {}
        for task in self._tasks.values():
            inputs = [self._producer(given.task) for given in task.spec.inputs]
            kept = (
                task.attempt > 0
                and task.phase in (Phase.RUNNING, Phase.PRODUCED)
                and not (task.spec.actor is not None and self._actors[task.spec.actor].durable)
                and task.durability is not Durability.COMMITTED
                and all(up is not None and up.durability is Durability.COMMITTED for up in inputs)
            )
            if kept:
                survivors[task.id] = task
            elif task.held:
                self._out.append(Release(task.id, task.attempt))
        self._agenda.clear()
        self._pending_intents.clear()
        self._unforced.clear()
        self._build(survivors)
        for survivor in survivors.values():
            adopted = self._tasks.get(survivor.id)
            if survivor.held and (adopted is None or adopted.attempt != survivor.attempt):
                self._out.append(Release(survivor.id, survivor.attempt))
        buffered, self._buffered = self._buffered, []
        for event in buffered:
            self._handle(event)

    # --- checkpoints ------------------------------------------------------------------------------------

    def _want(self, task: TaskState) -> None:
        """Ask for a task's checkpoint, and for those of its nondeterministic ancestors."""
        if task.durability is not Durability.UNWANTED:
            return
        task.durability = Durability.WANTED
        wanted: dict[str, None] = {}
        seen: set[str] = set()
        stack = self._ancestors(task)
        while stack:
            upstream = stack.pop()
            if upstream.id in seen or upstream.durability is Durability.COMMITTED:
                continue
            seen.add(upstream.id)
            if upstream.durability is Durability.UNWANTED and not upstream.options.deterministic:
                self._want(upstream)
            if upstream.durability is Durability.UNWANTED:
                stack.extend(self._ancestors(upstream))
            else:
                wanted[upstream.id] = None
        task.wanted_ancestors = tuple(wanted)
        if task.phase is Phase.PRODUCED:
            self._begin_checkpoint(task)

    def _ancestors(self, task: TaskState) -> list[TaskState]:
        """Return the tasks whose attempts this one's outcome depends on."""
        found = [self._producer(name) for name in _upstream(task.spec)]
        actor = self._durable_actor(task)
        if actor is not None:
            found.append(self._previous_call(actor, task))
        return [upstream for upstream in found if upstream is not None]

    def _want_snapshot(self, task: TaskState) -> None:
        """Ask for a durable snapshot of a call; where calls keep no state, one that is only read."""
        if task.options.checkpoint is not Checkpoint.NONE:
            task.state_forced = True
        elif task.snapshot is Durability.UNWANTED and self._durable_actor(task) is not None:
            task.snapshot = Durability.WANTED

    def _begin_checkpoint(self, task: TaskState) -> None:
        if task.durability is not Durability.WANTED or task.phase is not Phase.PRODUCED:
            return
        assert task.report is not None
        output, state = task.report.output, task.report.state
        needs_state = self._keeps_state(task) and state is None
        if output is not None and not needs_state:
            self._make_ready(task, output, state)
        else:
            self._out.append(Persist(task.id, task.attempt, output is None, needs_state))

    def _begin_snapshot(self, task: TaskState) -> None:
        if task.snapshot is not Durability.WANTED or task.phase is not Phase.PRODUCED or not task.held:
            return
        if task.report is not None and task.report.state is not None:
            self._make_snapshot_ready(task, task.report.state)
        else:
            self._out.append(Persist(task.id, task.attempt, output=False, state=True))

    def _on_persisted(self, event: Persisted) -> None:
        task = self._current(event.task, event.attempt)
        if task is None:
            return
        assert task.report is not None
        if task.options.checkpoint is Checkpoint.NONE and event.state is not None:
            if task.snapshot is Durability.WANTED:
                self._make_snapshot_ready(task, event.state)
        elif task.durability is Durability.WANTED:
            output, state = event.output or task.report.output, event.state or task.report.state
            self._make_ready(task, output, state)
        self._release_around(task)

    def _make_snapshot_ready(self, task: TaskState, state: Value) -> None:
        task.snapshot = Durability.READY
        task.snapshot_record = dataclasses.replace(self._record(task), state=state, resumable=False)
        self._ready[task.id] = task

    def _make_ready(self, task: TaskState, output: Value | None, state: Value | None) -> None:
        assert output is not None, task.id
        task.durability = Durability.READY
        task.record = dataclasses.replace(self._record(task), output=output, state=state)
        self._ready[task.id] = task

    def _record(self, task: TaskState) -> Committed:
        report = task.report
        assert report is not None
        return Committed(
            task.id,
            task.attempt,
            None,
            carry=self._carried_loop(task) is not None,
            stop=report.stop,
            loop=task.spec.loop,
            iteration=task.spec.iteration,
            actor=task.spec.actor,
            started_at=report.started_at,
            finished_at=report.finished_at,
        )

    def _confirmed(self, task: TaskState) -> bool:
        """Whether the task's iteration is known to exist: the one before did not end the loop."""
        if task.spec.loop is None:
            return True
        loop = self._loops[task.spec.loop]
        return task.spec.iteration <= max(loop.produced + 1, loop.known)

    # --- the journal ------------------------------------------------------------------------------------

    def _append_what_is_ready(self) -> None:
        if self._writing is not None:
            return
        records: list[Record] = []
        records += [intent for intent in self._pending_intents if intent.task in self._tasks]
        self._pending_intents.clear()
        for task in sorted(self._ready.values(), key=lambda task: task.order):
            if not self._confirmed(task):
                continue
            if task.snapshot is Durability.READY and task.snapshot_record is not None:
                task.snapshot = Durability.WRITING
                records.append(task.snapshot_record)
            if task.durability is Durability.READY and self._ancestors_written(task):
                task.durability = Durability.WRITING
                assert task.record is not None
                records.append(task.record)
        self._ready = {
            task.id: task for task in self._ready.values() if Durability.READY in (task.durability, task.snapshot)
        }
        fold = self._retire_for_fold() if self._since_fold >= self._fold_every else False
        if records:
            records, self._unforced = [*self._unforced, *records], []
        if not records and not fold:
            final = self._final_record()
            if final is None:
                return
            records.append(final)
        self._writing, self._writing_fold = records, fold
        content = (*self._history.records(), *records) if fold else tuple(records)
        self._out.append(Append(content, fold))

    def _ancestors_written(self, task: TaskState) -> bool:
        """Whether every wanted ancestor is committed or goes into the same object."""
        ancestors = (self._tasks.get(name) for name in task.wanted_ancestors)
        return all(ancestor is None or ancestor.durability >= Durability.WRITING for ancestor in ancestors)

    def _final_record(self) -> Finished | None:
        """Return the last record once nothing is left to do."""
        if self._finishing:
            return None
        if self._failure is not None:
            self._finishing = True
            task, error = self._failure
            return Finished(Status.FAILED, 0.0, task, error)
        root = self._producer(self._plan.root)
        if root is None or root.durability is not Durability.COMMITTED or self._deferred:
            return None
        if any(loop.ended_by is None for loop in self._loops.values()):
            return None
        if not all(_complete(state) for state in self._tasks.values()):
            return None
        self._archive_rows(everything=True)
        self._finishing = True
        return Finished(Status.SUCCESSFUL, 0.0)

    def _on_appended(self, at: float) -> None:
        assert self._writing is not None
        records, self._writing = self._writing, None
        records = [
            dataclasses.replace(record, committed_at=at) if isinstance(record, Committed) else record
            for record in records
        ]
        self._history.add(records)
        # One object may commit several iterations when the store is slow; what a fold frees is theirs.
        carries = sum(isinstance(record, Committed) and record.carry for record in records)
        self._since_fold = 0 if self._writing_fold else self._since_fold + max(1, carries)
        if self._writing_fold:
            live = self._history.blobs()
            dead = tuple(blob for blob in self._collectable if blob.name not in live)
            self._collectable = []
            self._out.append(Collect(dead))
        if any(isinstance(record, Committed) and record.carry for record in records):
            self._losses.pop("rollback", None)
        for record in records:
            if isinstance(record, Finished):
                self._complete(record)
                return
        if self._rollback_reason is not None:
            self._roll_back()
            return
        for record in records:
            task = self._tasks.get(getattr(record, "task", None) or "")
            if task is None:
                continue
            if isinstance(record, Intended):
                task.intended = True
                if task.phase is Phase.INTENDING:
                    task.phase = Phase.WAITING
                    self._agenda.append(task.id)
            elif isinstance(record, Committed) and record.resumable:
                self._on_committed(task, record)
            elif isinstance(record, Committed):
                task.snapshot, task.snapshot_record = Durability.COMMITTED, record
            self._wake_consumers(task)
            self._release_around(task)
        for loop in self._loops.values():
            self._advance(loop)

    def _on_committed(self, task: TaskState, record: Committed) -> None:
        task.durability, task.record = Durability.COMMITTED, record
        actor = self._durable_actor(task)
        if actor is not None and record.state is not None:
            self._cover(actor, task.spec)

    def _cover(self, actor: ActorState, spec: TaskSpec) -> None:
        """Note that an actor's state is durable up to this call."""
        place = actor.calls.index(spec.id)
        later = actor.calls[place + 1 :]
        actor.uncovered = self._tasks[later[0]].spec.iteration if later else None

    def _complete(self, record: Finished) -> None:
        self.finished = True
        for actor in self._actors.values():
            if actor.started:
                self._out.append(StopActor(actor.spec.id, actor.incarnation))
                actor.started = False
        self._out.append(Complete(record.status, record.task, record.error))

    # --- forgetting -------------------------------------------------------------------------------------

    def _advance(self, loop: LoopState) -> None:
        """Move a loop's marks over carries that are done, and forget iterations that are complete."""
        while (iteration := loop.iterations.get(loop.produced + 1)) is not None:
            carry = self._tasks[iteration.carry]
            if carry.phase is not Phase.PRODUCED and carry.durability is not Durability.COMMITTED:
                break
            loop.produced += 1
            if loop.ended_by is None and _ends(carry, loop):
                self._end_loop(loop, carry)
            following = loop.iterations.get(loop.produced + 1)
            if following is not None:
                # Effects, and calls of actors that outlive the loop, were waiting to know that it goes on.
                self._agenda.extend(spec.id for spec in following.tasks)
        while (iteration := loop.iterations.get(loop.done + 1)) is not None:
            carry = self._tasks[iteration.carry]
            wanted = carry.durability is not Durability.UNWANTED
            if carry.durability is not Durability.COMMITTED if wanted else carry.phase is not Phase.PRODUCED:
                break
            loop.done += 1
        for number in sorted(loop.iterations):
            if number >= loop.done or not self._forget(loop, number):
                break
        self._archive_rows()

    def _forget(self, loop: LoopState, number: int) -> bool:
        """Drop a complete iteration from memory; its records stay in the history until a fold."""
        iteration = loop.iterations[number]
        tasks = [self._tasks[spec.id] for spec in iteration.tasks]
        for task in tasks:
            settled = task.phase in _SETTLED and task.durability in (
                Durability.UNWANTED,
                Durability.COMMITTED,
            )
            settled = settled and task.snapshot in (Durability.UNWANTED, Durability.COMMITTED)
            last_on_actor = any(actor.calls and actor.calls[-1] == task.id for actor in self._actors.values())
            if not settled or last_on_actor or not self._consumers_settled(task):
                return False
        drawn = [task for task in tasks if _drawn(task)]
        if any(self._kept_output(task) is None for task in drawn):
            return False
        # Whatever is appended later may stand on these, and must then not come before them.
        self._unforced += [dataclasses.replace(self._record(task), output=self._kept_output(task)) for task in drawn]
        carry = self._tasks[iteration.carry]
        if carry.durability is Durability.UNWANTED and loop.spec.archive is not None:
            loop.rows.append(dataclasses.replace(self._record(carry), output=self._kept_output(carry)))
        for task in tasks:
            self._drop(task)
        del loop.iterations[number]
        return True

    def _drop(self, task: TaskState) -> None:
        if task.held:
            self._out.append(Release(task.id, task.attempt))
        actor = self._durable_actor(task)
        if actor is not None:
            actor.calls.remove(task.id)
        for upstream in _upstream(task.spec):
            producer = self._producer(upstream)
            if producer is not None:
                producer.consumers.pop(task.id, None)
        del self._tasks[task.id]

    def _consumers_settled(self, task: TaskState) -> bool:
        if task.id in self._read_later:
            return False
        return all(name not in self._tasks or self._tasks[name].phase in _SETTLED for name in task.consumers)

    def _release_around(self, task: TaskState) -> None:
        self._release(task)
        for name in (given.task for given in task.spec.inputs):
            upstream = self._producer(name) if name in self._loops or name in self._tasks else None
            if upstream is not None:
                self._release(upstream)

    def _release(self, task: TaskState) -> None:
        """Let go of a live value that no consumer and no checkpoint can still need."""
        if not task.held or task.phase is not Phase.PRODUCED or not self._consumers_settled(task):
            return
        if task.durability in (Durability.WANTED,) or task.snapshot is Durability.WANTED:
            return
        durable = task.durability is not Durability.UNWANTED or self._kept_output(task) is not None
        newest = any(self._producer(loop.last_carry) is task for loop in self._loops.values())
        if (newest or not task.options.deterministic or self._is_result(task)) and not durable:
            return
        task.held = False
        self._out.append(Release(task.id, task.attempt))

    def _retire_for_fold(self) -> bool:
        """Move complete iterations out of the history; return whether a fold is worth writing."""
        retired_any = False
        for loop in self._loops.values():
            uncovered = [
                actor.uncovered for actor in self._actors.values() if actor.durable and actor.uncovered is not None
            ]
            committed = loop.done
            upto = min(
                [
                    committed - loop.spec.keep,
                    min(loop.iterations, default=loop.next) - 1,
                    *(first - 1 for first in uncovered),
                ]
            )
            known = self._history.retired.get(loop.spec.id)
            if upto <= (0 if known is None else known.iteration):
                continue
            first = 1 if known is None else known.iteration + 1
            leaving = [
                record
                for record in self._history.committed.values()
                if record.loop == loop.spec.id and first <= record.iteration <= upto
            ]
            carry = next((record.task for record in leaving if record.carry and record.iteration == upto), None)
            if carry is None:
                continue
            dropped = self._history.retire(Retired(loop.spec.id, upto, carry))
            if loop.spec.archive is not None:
                self._out.append(Archive(loop.spec.id, first, upto, tuple(leaving)))
            self._collectable += [blob for record in dropped for blob in record.blobs]
            retired_any = True
        return retired_any

    def _archive_rows(self, *, everything: bool = False) -> None:
        """Archive iterations of loops whose carries are not checkpointed."""
        for loop in self._loops.values():
            if loop.rows and (everything or len(loop.rows) >= ARCHIVE_EVERY):
                first, last = loop.rows[0].iteration, loop.rows[-1].iteration
                self._out.append(Archive(loop.spec.id, first, last, tuple(loop.rows)))
                loop.rows = []


def _complete(task: TaskState) -> bool:
    """Whether a task leaves nothing that the end of the workflow has to wait for."""
    still = (Durability.WANTED, Durability.READY, Durability.WRITING)
    waits = task.branch and task.phase not in _SETTLED
    return not waits and task.durability not in still and task.snapshot not in still


def _drawn(task: TaskState) -> bool:
    """Whether a task's output exists nowhere else and would not come out the same again."""
    uncommitted = task.phase is Phase.PRODUCED and task.durability is Durability.UNWANTED
    return uncommitted and not task.options.deterministic


def _upstream(spec: TaskSpec) -> Sequence[str]:
    return (*(given.task for given in spec.inputs), *spec.after)


def _loops_above(plan: Plan) -> dict[str, set[str]]:
    """Return, for every static task and loop, the loops it comes after, directly or through others."""
    upstream: dict[str, Sequence[str]] = {spec.id: _upstream(spec) for spec in plan.tasks}
    for loop in plan.loops:
        carry = () if loop.carry_task is None else (loop.carry_task,)
        upstream[loop.id] = (*carry, *loop.after)
    loops = {loop.id for loop in plan.loops}
    above: dict[str, set[str]] = {}

    def visit(name: str) -> set[str]:
        if name not in above:
            above[name] = set()
            for other in upstream[name]:
                above[name] |= visit(other) | ({other} & loops)
        return above[name]

    for name in upstream:
        visit(name)
    return above


def _token(task: TaskState) -> str:
    return f"{task.id}#{task.attempt}"


def _durable_state(task: TaskState) -> Value | None:
    if task.durability is Durability.COMMITTED and task.record is not None and task.record.state is not None:
        return task.record.state
    if task.snapshot is Durability.COMMITTED and task.snapshot_record is not None:
        return task.snapshot_record.state
    return None


def _ends(carry: TaskState, loop: LoopState) -> bool:
    record = carry.record
    stopped = record.stop if record is not None else carry.report is not None and carry.report.stop
    return stopped or carry.spec.iteration == loop.spec.iterations
