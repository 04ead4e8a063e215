"""What the world tells the core (events) and what the core asks of the world (instructions). Pure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from exoflow.codec import Blob
from exoflow.effects import Verdict
from exoflow.plan import ActorSpec, TaskSpec
from exoflow.records import Intended, Record, Status, Value


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What an attempt says of itself when its body has returned.

    Attributes
    ----------
    output : Value or None
        The durable output, where the attempt could make it durable on the way: small ones.
    state : Value or None
        The actor's durable state, where it was small enough to travel with the report.
    stop : bool
        The task returned `exoflow.stop`.
    wants_checkpoint : bool
        The body asked for a checkpoint of this call (``context().request_checkpoint()``).
    started_at, finished_at : float
        Unix seconds on the worker's clock.
    """

    output: Value | None = None
    state: Value | None = None
    stop: bool = False
    wants_checkpoint: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0

    @staticmethod
    def group(reports: Sequence[Report]) -> Report:
        """Join the reports of an actor's members into one: what not all of them made is not there."""
        outputs = [report.output for report in reports if report.output is not None]
        states = [report.state for report in reports if report.state is not None]
        return Report(
            Value.group(outputs) if len(outputs) == len(reports) else None,
            Value.group(states) if len(states) == len(reports) else None,
            any(report.stop for report in reports),
            any(report.wants_checkpoint for report in reports),
            min(report.started_at for report in reports),
            max(report.finished_at for report in reports),
        )


# --- events -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Produced:
    """An attempt's body returned; its value is available to consumers."""

    task: str
    attempt: int
    report: Report


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """An attempt raised, or ran out of time.

    ``not_done`` says that it vouched that it had no effect, ``no_retry`` that another attempt would not help.
    """

    task: str
    attempt: int
    error: str
    not_done: bool = False
    no_retry: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """A rollback or resolve function has returned; ``report`` holds the effect's output, when it is DONE."""

    task: str
    attempt: int
    verdict: Verdict
    report: Report | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """An attempt did not run its body: an input failed, or its actor was not in the expected state."""

    task: str
    attempt: int


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """The process of an attempt died."""

    task: str
    attempt: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class InputLost:
    """An attempt broke off because a value that it reads is gone, with the process or node that held it."""

    task: str
    attempt: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class ValueLost:
    """What an attempt has made is gone before it was durable."""

    task: str
    attempt: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class ActorLost:
    """A member of an actor died."""

    actor: str
    incarnation: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class StateDamaged:
    """An actor could not be restored: the state it should start from is not what was written."""

    actor: str
    incarnation: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """The code of an actor's member has something to say to the observer; no event, for it changes nothing."""

    actor: str
    incarnation: int
    member: int
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Persisted:
    """What an instruction `Persist` asked for is durable."""

    task: str
    attempt: int
    output: Value | None
    state: Value | None


@dataclasses.dataclass(frozen=True, slots=True)
class PersistFailed:
    """What an instruction `Persist` asked for could not be made durable."""

    task: str
    attempt: int
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class Appended:
    """The append in flight is durable since ``at`` (Unix seconds)."""

    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Woken:
    """The pause before a task's retry is over, or what is ready in a loop has waited long enough."""

    task: str


Event = (
    Produced
    | Failed
    | Settled
    | Refused
    | Lost
    | InputLost
    | ValueLost
    | ActorLost
    | StateDamaged
    | Persisted
    | PersistFailed
    | Appended
    | Woken
)


# --- instructions -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Live:
    """An input that is the output of a running or finished attempt."""

    task: str
    attempt: int


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where an input comes from: a live attempt or a durable value.

    ``after_loop`` marks an input whose producer may have returned `stop`: the consumer outside the loop, or in a
    branch of the same iteration, gets the value; a later iteration must not run.
    """

    value: Live | Value
    after_loop: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """The actor side of a submission: which incarnation, in which state, and whether to capture."""

    incarnation: int
    expects: str
    leaves: str
    snapshot: bool


class Purpose(enum.StrEnum):
    """What an attempt runs: the task's body, or one of the functions that cure an effect in doubt."""

    BODY = "body"
    RESOLVE = "resolve"
    ROLLBACK = "rollback"


@dataclasses.dataclass(frozen=True, slots=True)
class Submit:
    """Run an attempt.

    Attributes
    ----------
    spec, attempt : TaskSpec, int
        Of which task, and the number of the attempt.
    sources : tuple of Source
        Where the inputs come from; empty unless it is the body that runs.
    keep : bool
        Whether to report the output in durable form, if it is small.
    key : str
        The idempotency key that the context shows.
    call : Call or None
        The actor side, for calls.
    purpose : Purpose
        What to run.
    intent : Intended or None
        The announcement that an external body acts on.
    last : bool
        No attempt follows an exception of this one, and none before it may have had the effect, so
        ``catch_exceptions`` applies.
    turns : str
        The name that the context shows for the turns this task is one of.
    repeats : bool
        An attempt before this one may have had the effect.
    """

    spec: TaskSpec
    attempt: int
    sources: tuple[Source, ...]
    keep: bool
    key: str
    call: Call | None = None
    purpose: Purpose = Purpose.BODY
    intent: Intended | None = None
    last: bool = True
    turns: str = ""
    repeats: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class StartActor:
    """Create an actor, from the state ``restore`` when that is not None."""

    spec: ActorSpec
    incarnation: int
    restore: Value | None


@dataclasses.dataclass(frozen=True, slots=True)
class StopActor:
    """End an actor's processes."""

    actor: str
    incarnation: int


@dataclasses.dataclass(frozen=True, slots=True)
class Persist:
    """Make an attempt's output, its actor's captured state, or both durable.

    ``known`` are blobs that stay until this is answered and committed: equal bytes need no other.
    """

    task: str
    attempt: int
    output: bool
    state: bool
    known: tuple[Blob, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Append:
    """Append one journal object. A fold replaces all objects before it."""

    records: tuple[Record, ...]
    fold: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """Write the archive object of iterations ``first`` to ``last``; done before any later `Append`."""

    loop: str
    first: int
    last: int
    records: tuple[Record, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Collect:
    """Delete the journal objects before the fold, and blobs that nothing names any more."""

    blobs: tuple[Blob, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Release:
    """Nobody needs an attempt's value any more."""

    task: str
    attempt: int


@dataclasses.dataclass(frozen=True, slots=True)
class Wake:
    """Send `Woken` after a pause."""

    task: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Complete:
    """The workflow has ended and the journal says so."""

    status: Status
    task: str | None = None
    error: str | None = None


Instruction = Submit | StartActor | StopActor | Persist | Append | Archive | Collect | Release | Wake | Complete
