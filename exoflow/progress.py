"""How far a workflow is: its tasks, actors and loops, and what can be read off them. Pure.

A task is described by two independent facts. Its *phase* says how far its body is, its *durability* how far
its checkpoint is.

`Progress` is the lowest layer of the core. The layers above it, each in a module of its own and each using
only those below, are the rules: `exoflow.checkpoints` (what must become durable), `exoflow.retention` (what
may be forgotten), `exoflow.layout` (which tasks there are), `exoflow.attempts` (what may run),
`exoflow.doubts` (effects that were cut off) and, on top, `exoflow.state` (what events mean).
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from collections.abc import Sequence

from exoflow.messages import Instruction, Report
from exoflow.options import TaskOptions
from exoflow.plan import ActorSpec, Iteration, LoopSpec, Plan, TaskSpec
from exoflow.records import Committed, History, Intended, Status, Value


class Phase(enum.Enum):
    """How far a task's body is.

    An external task's intent is being written while it is INTENDING. If its effect is DOUBTED, a cure runs
    while it is SETTLING, and what the cure found is being written while it is CLEARING.
    """

    WAITING = enum.auto()
    INTENDING = enum.auto()
    RUNNING = enum.auto()
    DOUBTED = enum.auto()
    SETTLING = enum.auto()
    CLEARING = enum.auto()
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


SETTLED = (Phase.PRODUCED, Phase.SKIPPED, Phase.VOID)


@dataclasses.dataclass(slots=True, eq=False)
class TaskState:
    """One task: its spec, where it stands, and who waits for it.

    ``repeats`` says of an effect's attempt that one before it may have had the effect, under the same key.
    """

    spec: TaskSpec
    order: int
    phase: Phase = Phase.WAITING
    durability: Durability = Durability.UNWANTED
    snapshot: Durability = Durability.UNWANTED
    attempt: int = 0
    inputs_seen: int = 0
    chained: bool = True
    sleeping: bool = False
    held: bool = False
    value_lost: bool = False
    replayed: bool = False
    state_forced: bool = False
    branch: bool = False
    repeats: bool = False
    trouble: str | None = None
    given_up: bool = False
    unresolved: bool = False
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
    """One loop: which iterations exist and how far they are.

    ``turns`` holds, by name, the tasks whose turn may not be over yet, in order; the last one stays.
    """

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
    turns: dict[str, deque[TaskSpec]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """Why the workflow goes no further."""

    status: Status
    task: str
    error: str


class Progress:
    """The state itself.

    Parameters
    ----------
    plan : Plan
        The workflow.
    history : History
        What the journal says so far, this owner's claim included.
    """

    def __init__(self, plan: Plan, history: History) -> None:
        self._plan = plan
        self._history = history
        self._tasks: dict[str, TaskState] = {}
        self._actors: dict[str, ActorState] = {}
        self._loops: dict[str, LoopState] = {}
        self._deferred: list[TaskSpec] = []
        self._read_later: set[str] = set()
        self._begun = set(history.intended)
        self._ending: Ending | None = None
        self._out: list[Instruction] = []
        self._agenda: deque[str] = deque()

    @property
    def history(self) -> History:
        """What the journal says, as far as appends were acknowledged."""
        return self._history

    def task(self, task_id: str) -> TaskState | None:
        """Return a task's state while it is in memory."""
        return self._tasks.get(task_id)

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

    def _carried_loop(self, task: TaskState) -> LoopState | None:
        """Return the loop whose carry the task makes."""
        loop = None if task.spec.loop is None else self._loops.get(task.spec.loop)
        iteration = None if loop is None else loop.iterations.get(task.spec.iteration)
        return loop if iteration is not None and iteration.carry == task.id else None

    def _is_result(self, task: TaskState) -> bool:
        loop = self._loops.get(self._plan.root)
        return task.id == (self._plan.root if loop is None else loop.ended_by)

    def _confirmed(self, task: TaskState) -> bool:
        """Whether the task's iteration is known to exist: the one before did not end the loop."""
        if task.spec.loop is None:
            return True
        loop = self._loops[task.spec.loop]
        return task.spec.iteration <= max(loop.produced + 1, loop.known)

    def _current(self, task_id: str, attempt: int) -> TaskState | None:
        """Return the task if this attempt is the one that counts."""
        task = self._tasks.get(task_id)
        return task if task is not None and task.attempt == attempt else None

    def _consumers_settled(self, task: TaskState) -> bool:
        if task.id in self._read_later:
            return False
        return all(name not in self._tasks or self._tasks[name].phase in SETTLED for name in task.consumers)

    def _kept_output(self, task: TaskState) -> Value | None:
        if task.record is not None and task.record.output is not None:
            return task.record.output
        return None if task.report is None else task.report.output

    def _wake_consumers(self, task: TaskState) -> None:
        self._agenda.extend(task.consumers)

    def _intent(self, task: TaskState) -> Intended | None:
        """Return the announcement of the task's effect, once it is durable."""
        return self._history.intended.get(task.id)

    def _end(self, task_id: str, error: str, status: Status = Status.FAILED) -> None:
        """Go no further: what runs is let finish, nothing else begins."""
        if self._ending is None:
            self._ending = Ending(status, task_id, error)


def is_drawn(task: TaskState) -> bool:
    """Whether a task's output exists nowhere else and would not come out the same again."""
    uncommitted = task.phase is Phase.PRODUCED and task.durability is Durability.UNWANTED
    return uncommitted and not task.options.deterministic


def upstream_of(spec: TaskSpec) -> Sequence[str]:
    """Return the ids of all that a task comes after, directly."""
    return (*(given.task for given in spec.inputs), *spec.after)


def durable_state(task: TaskState) -> Value | None:
    """Return the actor's state right after a call, if it is committed."""
    if task.durability is Durability.COMMITTED and task.record is not None and task.record.state is not None:
        return task.record.state
    if task.snapshot is Durability.COMMITTED and task.snapshot_record is not None:
        return task.snapshot_record.state
    return None
