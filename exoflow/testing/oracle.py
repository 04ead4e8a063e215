"""What must hold, checked while it happens: the judge of a simulated world.

It watches the store, not the core: what lands, and what is deleted. `exoflow.verify` says whether the journal
is one history; here are the promises that a journal alone cannot show.
"""

from __future__ import annotations

from typing import Any

from exoflow.blobs import Blobs, blob_folder
from exoflow.codec import Blob
from exoflow.effects import Cure
from exoflow.errors import CorruptRecord, WorkflowNotFound
from exoflow.journal import JournalObject, decode_object, journal_folder, number_of, read_objects
from exoflow.plan import Plan
from exoflow.records import GROUP_CODEC, Committed, Finished, History, Intended, Status
from exoflow.steps import Delete, StoreStep, drive
from exoflow.storage import Store
from exoflow.testing.outside import outside
from exoflow.testing.workflows import Broke, Vouched, parts, turn
from exoflow.testing.world import Violation
from exoflow.verify import Expand, Verifier

_WITH_ORIGINS = ("json", "pickle", GROUP_CODEC)


class Judge:
    """Watches one workflow of one store.

    Raises
    ------
    Violation
        From every method, when a promise is broken.
    """

    def __init__(self, store: Store, workflow_id: str, plan: Plan, expand: Expand) -> None:
        self._store = store
        self._blobs = Blobs(store, workflow_id)
        self._plan = plan
        self._journal_folder = journal_folder(workflow_id)
        self._blob_folder = blob_folder(workflow_id)
        self._verifier = Verifier(plan, expand)
        self._objects: dict[int, JournalObject] = {}
        self._stamps: dict[str, int | str] = {}
        self._announced: dict[str, int] = {}
        self.pinned: dict[str, set[str]] = {}
        try:
            known = drive(read_objects(workflow_id), store)
        except WorkflowNotFound:
            known = []
        for key in store.list(self._journal_folder):
            data = store.get(key)
            assert data is not None
            self._objects[number_of(key)] = decode_object(key, data)
        for found in known:
            self._take(found)

    @property
    def history(self) -> History:
        """What the journal amounts to so far."""
        return self._verifier.history

    @property
    def status(self) -> Status | None:
        """How the workflow has ended, if it has."""
        finished = self._verifier.history.finished
        return None if finished is None else finished.status

    @property
    def error(self) -> str | None:
        """Why it has not succeeded."""
        finished = self._verifier.history.finished
        return None if finished is None else finished.error

    @property
    def generation(self) -> int:
        """The newest claim's."""
        return max((found.header.generation for found in self._objects.values()), default=0)

    def watch(self, step: StoreStep, data: bytes | None) -> None:
        """Look at a write that has landed, or at a deletion that is about to."""
        key = getattr(step, "key", "")
        if isinstance(step, Delete):
            self._deleting(key)
        elif key.startswith(f"{self._journal_folder}/"):
            assert data is not None
            self._landed(decode_object(key, data))

    # --- the journal ------------------------------------------------------------------------------------

    def _landed(self, found: JournalObject) -> None:
        number = found.header.number
        known = self._objects.get(number)
        if known is not None:
            # Its object was collected, and it came late: no reader looks below the newest fold. The writer of a
            # claim finds out; the writer of anything else knew what it wrote and went on long ago.
            late = number < self._objects[max(self._objects)].header.base
            _demand(late and (known == found or found.header.kind == "claim"), f"journal object {number} is replaced")
            return
        self._take(found)

    def _take(self, found: JournalObject) -> None:
        self._objects[found.header.number] = found
        self._verifier.add(found)
        _demand(not self._verifier.problems, str(self._verifier.problems[:1]))
        if found.header.kind == "fold":
            return
        for record in found.records:
            match record:
                case Committed():
                    self._check_whole(record)
                    for value in (record.output, record.state):
                        if value is not None and value.codec in _WITH_ORIGINS:
                            self._agree(self._blobs.load(value))
                case Intended():
                    self._announced[record.task] = found.header.generation
                case Finished(Status.IN_DOUBT, task=task) if task is not None:
                    self._check_doubt(task, found.header.generation)

    def _check_whole(self, record: Committed) -> None:
        for blob in record.blobs:
            try:
                self._blobs.read(blob)
            except CorruptRecord as error:
                message = f"{record.task!r} counts, and a blob of it is missing or damaged"
                raise Violation(message) from error

    def _check_doubt(self, task: str, generation: int) -> None:
        """Check that an owner who saw everything doubts for a reason."""
        intent = self._verifier.history.intended.get(task)
        if intent is not None and self._announced.get(task) == generation:
            _demand(
                intent.key in outside.unclear,
                f"{task!r} is in doubt, and its bodies all vouched that they did nothing",
            )

    def _agree(self, value: Any, *, undone: bool = False) -> None:
        """Check that all that counts was computed from the same executions; of what is undone, its inputs."""
        for made in parts(value):
            own = {} if undone else {made["task"]: made["stamp"]}
            for task, stamp in {**made["of"], **own}.items():
                known = self._stamps.setdefault(task, stamp)
                _demand(known == stamp, f"{task!r} counts as execution {known} and as execution {stamp}")
                _demand(turn(task) in (None, stamp), f"{task!r} was call {stamp} of its actor")

    # --- deletions --------------------------------------------------------------------------------------

    def _deleting(self, key: str) -> None:
        folder, _, name = key.rpartition("/")
        if folder == self._blob_folder:
            _demand(name not in self._verifier.history.blobs(), "a blob is deleted, and a record needs it")
            _demand(not any(name in pinned for pinned in self.pinned.values()), "a blob is deleted and pinned")
        elif folder == self._journal_folder:
            found = self._objects[number_of(key)]
            _demand(found.header.kind != "claim", f"the claim {found.header.number} is deleted")
            base = self._objects[max(self._objects)].header.base
            _demand(found.header.number < base, f"journal object {found.header.number} is deleted and still read")

    def still_there(self, blob: Blob) -> None:
        """Check a blob that a reader has pinned."""
        try:
            self._blobs.read(blob)
        except CorruptRecord as error:
            message = "a reader had pinned a blob, and it is missing or damaged"
            raise Violation(message) from error

    # --- the end ----------------------------------------------------------------------------------------

    def judge_end(self) -> None:
        """Check that all that counts is whole."""
        history = self._verifier.history
        for record in (*history.committed.values(), *history.snapshots.values()):
            self._check_whole(record)

    def judge_effects(self) -> None:
        """Check what has happened outside, when everything is over."""
        for key, applied in outside.effects.items():
            _demand(
                all(value == applied.values[0] for value in applied.values),
                f"the effect {key} of {applied.task!r} had several values",
            )
            self._agree(applied.values[0], undone=applied.undone)
            times = len(applied.values)
            _demand(times == 1 or applied.cure is Cure.REPEAT, f"the effect {key} happened {times} times")
        self._count_tasks()

    def _count_tasks(self) -> None:
        standing: dict[str, list[str]] = {}
        for key, applied in outside.effects.items():
            if not applied.undone:
                standing.setdefault(applied.task, []).append(key)
        history = self._verifier.history
        for task, keys in standing.items():
            _demand(len(keys) == 1, f"{task!r} had effects under {len(keys)} keys")
            accounted = task in history.committed or history.in_doubt(task) or self._left(task)
            _demand(accounted, f"{task!r} had an effect that nothing accounts for")
        if self.status is not Status.SUCCESSFUL:
            return
        for record in history.committed.values():
            spec = self._verifier.spec(record)
            if spec is not None and spec.options.external:
                self._check_effect(record, had_one=record.task in standing)

    def _check_effect(self, record: Committed, *, had_one: bool) -> None:
        """Check that an effect happened exactly if the output that counts says so."""
        assert record.output is not None
        match self._blobs.load(record.output):
            case (None, Vouched()):
                _demand(not had_one, f"{record.task!r} says that it had no effect, and had one")
            case (None, Broke()):
                message = f"{record.task!r} counts as failed, and nobody knows whether it had an effect"
                raise Violation(message)
            case _:
                _demand(had_one, f"{record.task!r} is committed and had no effect")

    def _left(self, task: str) -> bool:
        """Whether a task belongs to iterations that have left the journal."""
        _, bracket, rest = task.rpartition("[")
        number = int(rest.rstrip("]")) if bracket else 0
        return any(0 < number <= retired.iteration for retired in self._verifier.history.retired.values())

    def result(self) -> Any:
        """Return the workflow's result as a reader of the store finds it."""
        committed = self._verifier.history.committed
        root = committed.get(self._plan.root)
        if root is None:
            carries = [record for record in committed.values() if record.loop == self._plan.root and record.carry]
            root = max(carries, key=lambda record: record.iteration)
        assert root.output is not None
        return self._blobs.load(root.output)


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
