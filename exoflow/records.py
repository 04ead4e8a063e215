"""What a journal says: the record types, and the history that a sequence of them amounts to. Pure.

Status is derived from records; nothing else stores it.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exoflow.codec import Blob, Encoded

GROUP_CODEC = "group"


class Status(enum.StrEnum):
    """Where a workflow stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    INTERRUPTED = "INTERRUPTED"
    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"
    IN_DOUBT = "IN_DOUBT"


@dataclasses.dataclass(frozen=True, slots=True)
class Value:
    """A durable value: its bytes inside the record, or a blob that holds them.

    ``names`` are the blobs that the value itself mentions; they live as long as the value does.
    """

    codec: str
    data: bytes | None
    blob: Blob | None = None
    names: tuple[Blob, ...] = ()

    @staticmethod
    def inline(encoded: Encoded) -> Value:
        """Keep the bytes inside the record."""
        return Value(encoded.codec, encoded.data, None, encoded.blobs)

    @staticmethod
    def group(members: Sequence[Value]) -> Value:
        """Join the values of an actor's members into one that stands for their list."""
        data = json.dumps([member.to_json() for member in members], separators=(",", ":")).encode("ascii")
        return Value(GROUP_CODEC, data, None, tuple(blob for member in members for blob in member.blobs))

    def members(self) -> list[Value]:
        """Invert `group`."""
        assert self.data is not None
        return [Value.from_json(member) for member in json.loads(self.data)]

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All blobs that must exist for the value to be whole."""
        return self.names if self.blob is None else (*self.names, self.blob)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        if self.blob is None:
            assert self.data is not None
            return Encoded(self.codec, self.data, self.names).to_json()
        return {
            "codec": self.codec,
            "blob": self.blob.to_json(),
            "blobs": [blob.to_json() for blob in self.names],
        }

    @staticmethod
    def from_json(shown: dict[str, Any]) -> Value:
        """Invert `to_json`."""
        if "blob" not in shown:
            return Value.inline(Encoded.from_json(shown))
        names = tuple(Blob(**blob) for blob in shown["blobs"])
        return Value(shown["codec"], None, Blob(**shown["blob"]), names)


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """The workflow exists; its plan is stored under its digest.

    ``nonce`` tells it from another workflow that once had the same id; times are Unix seconds.
    """

    digest: str
    nonce: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Intended:
    """An external task may begin from now on.

    Attributes
    ----------
    task, key : str
        Whose effect, and the key under which it is applied.
    digest : str
        Hex digest of the arguments that it is applied to.
    at : float
        Unix seconds; what ``context().now()`` returns on every attempt.
    generation : int
        How often an effect of this task was rolled back before.
    loop, iteration, carry : str or None, int, bool
        Where in which loop, and whether the output is its carry.
    """

    task: str
    key: str
    digest: str = ""
    at: float = 0.0
    generation: int = 0
    loop: str | None = None
    iteration: int = 0
    carry: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Cleared:
    """An intent is over without an effect: it never happened, or it was undone.

    ``generation`` goes into the key of the task's next intent; it is one higher after a rollback.
    """

    task: str
    generation: int = 0
    loop: str | None = None
    iteration: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Committed:
    """A task's output counts.

    Attributes
    ----------
    task, attempt : str, int
        Which execution made it.
    output : Value or None
        The output; None in a snapshot that is only there to be read.
    state : Value or None
        The actor's state after this call, one list entry per member.
    resumable : bool
        Whether recovery may start from it. False for a snapshot that a loop without checkpoints was
        asked for: it is there to be read, and the task itself is computed again.
    carry, stop : bool
        The output is its loop's carry; the task ended its loop.
    loop, iteration : str or None, int
        Where in which loop.
    actor : str or None
        Whose call it was.
    started_at, finished_at, committed_at : float, float, float or None
        Unix seconds; the last is known once a later object was appended.
    """

    task: str
    attempt: int
    output: Value | None
    state: Value | None = None
    resumable: bool = True
    carry: bool = False
    stop: bool = False
    loop: str | None = None
    iteration: int = 0
    actor: str | None = None
    started_at: float = 0.0
    finished_at: float = 0.0
    committed_at: float | None = None

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """All blobs that must exist for the record to be whole."""
        output = () if self.output is None else self.output.blobs
        return output if self.state is None else (*output, *self.state.blobs)


@dataclasses.dataclass(frozen=True, slots=True)
class Retired:
    """Iterations of a loop up to this one are complete and have left the journal.

    ``carry`` is the task whose output is the carry of the last of them; its record stays.
    """

    loop: str
    iteration: int
    carry: str


@dataclasses.dataclass(frozen=True, slots=True)
class Finished:
    """The workflow ended: SUCCESSFUL, or FAILED or IN_DOUBT with the task and its error."""

    status: Status
    at: float
    task: str | None = None
    error: str | None = None


Record = Started | Intended | Cleared | Committed | Retired | Finished
_KINDS: dict[str, type[Record]] = {
    "started": Started,
    "intended": Intended,
    "cleared": Cleared,
    "committed": Committed,
    "retired": Retired,
    "finished": Finished,
}


def record_to_json(record: Record) -> dict[str, Any]:
    """Return the JSON form of a record; fields at their defaults are left out."""
    shown: dict[str, Any] = {"kind": type(record).__name__.lower()}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value == field.default:
            continue
        shown[field.name] = value.to_json() if isinstance(value, Value) else value
    return shown


def record_from_json(shown: dict[str, Any]) -> Record:
    """Invert `record_to_json`.

    Raises
    ------
    KeyError, TypeError
        When the JSON is no record of this version.
    """
    fields = dict(shown)
    kind = _KINDS[fields.pop("kind")]
    for name in ("output", "state"):
        if fields.get(name) is not None:
            fields[name] = Value.from_json(fields[name])
    if "status" in fields:
        fields["status"] = Status(fields["status"])
    if kind is Committed:
        fields.setdefault("output", None)
    return kind(**fields)


@dataclasses.dataclass(slots=True)
class History:
    """What the records of a journal, in order, amount to.

    ``barren_claims`` counts the claims since a record last took the workflow further.
    """

    started: Started | None = None
    committed: dict[str, Committed] = dataclasses.field(default_factory=dict)
    snapshots: dict[str, Committed] = dataclasses.field(default_factory=dict)
    intended: dict[str, Intended] = dataclasses.field(default_factory=dict)
    cleared: dict[str, Cleared] = dataclasses.field(default_factory=dict)
    retired: dict[str, Retired] = dataclasses.field(default_factory=dict)
    finished: Finished | None = None
    barren_claims: int = 0

    def add(self, records: Iterable[Record]) -> None:
        """Take in further records."""
        for record in records:
            if isinstance(record, Committed | Cleared | Finished):
                self.barren_claims = 0
            match record:
                case Started():
                    self.started = record
                case Intended():
                    self.intended[record.task] = record
                case Cleared():
                    self.intended.pop(record.task, None)
                    self.cleared[record.task] = record
                case Committed() if record.resumable:
                    self.committed[record.task] = record
                case Committed():
                    self.snapshots[record.task] = record
                case Retired():
                    self.retired[record.loop] = record
                case Finished():
                    self.finished = record

    def reopen(self) -> None:
        """Take in a claim: it runs again what has not succeeded, and leaves a successful workflow alone."""
        self.barren_claims += 1
        if self.finished is not None and self.finished.status is not Status.SUCCESSFUL:
            self.finished = None

    def in_doubt(self, task: str) -> bool:
        """Whether an effect of the task was announced and nothing says what became of it."""
        return task in self.intended and task not in self.committed

    def records(self) -> list[Record]:
        """Return records that amount to this history: what a fold repeats."""
        head: list[Record] = [] if self.started is None else [self.started]
        tail: list[Record] = [] if self.finished is None else [self.finished]
        middle: list[Record] = [
            *self.retired.values(),
            *self.cleared.values(),
            *self.intended.values(),
            *self.committed.values(),
            *self.snapshots.values(),
        ]
        return head + middle + tail

    def blobs(self) -> set[str]:
        """Return the names of all blobs that the records need."""
        records = [*self.committed.values(), *self.snapshots.values()]
        return {blob.name for record in records for blob in record.blobs}

    def retire(self, retired: Retired) -> list[Committed]:
        """Drop the iterations up to ``retired`` and return the records dropped.

        What later iterations stand on stays: the last carry, and each actor's newest state.
        """
        kept = {retired.carry, *(record.task for record in newest_states(self.committed).values())}

        def leaves(record: Committed | Intended | Cleared) -> bool:
            return record.loop == retired.loop and record.iteration <= retired.iteration and record.task not in kept

        dropped = [record for record in self.committed.values() if leaves(record)]
        dropped += [record for record in self.snapshots.values() if leaves(record)]
        self.committed = {task: record for task, record in self.committed.items() if not leaves(record)}
        self.snapshots = {task: record for task, record in self.snapshots.items() if not leaves(record)}
        self.intended = {task: record for task, record in self.intended.items() if not leaves(record)}
        self.cleared = {task: record for task, record in self.cleared.items() if not leaves(record)}
        self.retired[retired.loop] = retired
        return dropped


def newest_states(committed: Mapping[str, Committed]) -> dict[str, Committed]:
    """Return, by actor, the newest record that holds its state; calls commit in their order."""
    return {
        record.actor: record for record in committed.values() if record.actor is not None and record.state is not None
    }
