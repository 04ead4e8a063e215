"""What the world tells the core (events) and what the core asks of the world (instructions). Pure."""

from __future__ import annotations

import dataclasses
import enum

from exoflow.codec import Blob
from exoflow.plan import ActorSpec, TaskSpec
from exoflow.records import Record, Status, Value


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What an attempt says of itself when its body has returned.

    Attributes
    ----------
    output : Value or None
        The durable output, where the attempt could make it durable on the way (small, or sync).
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


# --- events -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Produced:
    """An attempt's body returned; its value is available to consumers."""

    task: str
    attempt: int
    report: Report


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """An attempt's body raised."""

    task: str
    attempt: int
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """An attempt did not run its body: an input failed, or its actor was not in the expected state."""

    task: str
    attempt: int


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """The process of an attempt died, or an input of it is gone."""

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
    """The pause before a retry is over."""

    task: str


Event = Produced | Failed | Refused | Lost | ActorLost | Persisted | PersistFailed | Appended | Woken


# --- instructions -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Live:
    """An input that is the output of a running or finished attempt."""

    task: str
    attempt: int


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where an input comes from: a live attempt or a durable value.

    ``after_loop`` marks an input whose producer may have returned `stop`: the consumer outside the loop
    gets the value, a consumer inside it must not run.
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


class Keep(enum.StrEnum):
    """Which outputs an attempt shall report in durable form: none, small ones, or all."""

    NONE = "none"
    SMALL = "small"
    ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class Submit:
    """Run a body; ``key`` is the idempotency key that its context shows."""

    spec: TaskSpec
    attempt: int
    sources: tuple[Source, ...]
    keep: Keep
    key: str
    call: Call | None = None


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
    """Make an attempt's output, its actor's captured state, or both durable."""

    task: str
    attempt: int
    output: bool
    state: bool


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
