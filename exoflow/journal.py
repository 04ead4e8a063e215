"""The commit protocol: who owns a workflow, and which records count.

A journal is a sequence of numbered objects, each created with put-if-absent, so that exactly one writer
gets each number. An object is a header line, a line per record, and a trailer line with the checksum of
all before it; the header names the owner's generation and nonce and the predecessor's checksum.

- An owner has at most one append in flight. A claim is an append that opens a new generation; it takes the
  number right after the last object the claimant read, so a stale owner's next append collides with it, for
  claims are never collected. A claimant may be stale too, and the object it should collide with be collected:
  so it looks once more, and is fenced when the journal has gone on beyond its claim.
- Whenever the outcome of an append is not known, the writer reads back: its own nonce = done, another's =
  fenced, absent = try again.
- A fold repeats every live record, so that older objects may be deleted; each header says where the newest
  fold is.

All of it is written as generators of store operations (`exoflow.steps`), which the simulator drives too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from exoflow.errors import CorruptRecord, Fenced, StorageUnavailable, WorkflowNotFound
from exoflow.records import Committed, History, Record, record_from_json, record_to_json
from exoflow.steps import Delete, Get, List, Pause, PutIfAbsent, Steps, drive
from exoflow.storage import Store

FORMAT = 1
_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_MOVED_TRIES = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """A process that owns a workflow for one tenure.

    Attributes
    ----------
    host, boot_id : str
        Machine, and which start of it.
    pid, pid_started : int
        Process, and its start in clock ticks since boot; -1 where that is not known.
    nonce : str
        Which tenure of that process.
    """

    host: str
    boot_id: str
    pid: int
    pid_started: int
    nonce: str

    def __str__(self) -> str:
        """Return the owner in words."""
        return f"process {self.pid} on {self.host}"


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """First line of a journal object.

    Attributes
    ----------
    kind : str
        ``claim``, ``append`` or ``fold``.
    number : int
        Place in the journal, from 1.
    generation, owner, nonce : int, Owner, str
        Whose tenure it is, who that is, and which write this is.
    previous : str
        Checksum of the object before it.
    base : int
        Number of the newest fold up to here, this object included; 1 while there is none.
    previous_acked_at : float or None
        When the writer knew that the object before was durable (Unix seconds).
    """

    kind: str
    number: int
    generation: int
    owner: Owner
    nonce: str
    previous: str
    base: int
    previous_acked_at: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class JournalObject:
    """A decoded journal object."""

    header: Header
    records: tuple[Record, ...]
    sha256: str


def encode_object(header: Header, records: Iterable[Record]) -> tuple[bytes, str]:
    """Return the bytes of a journal object, and its checksum."""
    lines = [_line({"format": FORMAT, **dataclasses.asdict(header)})]
    lines += [_line(record_to_json(record)) for record in records]
    body = b"".join(lines)
    checksum = hashlib.sha256(body).hexdigest()
    return body + _line({"sha256": checksum}), checksum


def decode_object(key: str, data: bytes) -> JournalObject:
    """Invert `encode_object`.

    Raises
    ------
    CorruptRecord
        When the object is cut short, altered, or of a newer format.
    """
    lines = data.splitlines(keepends=True)
    body, trailer = b"".join(lines[:-1]), lines[-1] if lines else b""
    checksum = hashlib.sha256(body).hexdigest()
    try:
        whole = len(lines) >= 2 and json.loads(trailer)["sha256"] == checksum
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        message = f"{key} is cut short or altered: its checksum does not match; restore it from a backup"
        raise CorruptRecord(key, message)
    try:
        fields = json.loads(lines[0])
        if fields.pop("format") != FORMAT:
            message = f"{key} was written by a newer version of exoflow; upgrade to read it"
            raise CorruptRecord(key, message)
        fields["owner"] = Owner(**fields["owner"])
        records = tuple(record_from_json(json.loads(line)) for line in lines[1:-1])
        return JournalObject(Header(**fields), records, checksum)
    except (ValueError, KeyError, TypeError) as error:
        message = f"{key} holds a record that this version cannot read: {error}"
        raise CorruptRecord(key, message) from error


_JSON = json.JSONEncoder(separators=(",", ":"))  # Made once: json.dumps makes one at every call.


def _line(shown: dict[str, Any]) -> bytes:
    return _JSON.encode(shown).encode("ascii") + b"\n"


# --- keys -------------------------------------------------------------------------------------------------


def workflow_folder(workflow_id: str) -> str:
    """Return the folder of everything a workflow stores."""
    return f"workflows/{workflow_id}"


def journal_folder(workflow_id: str) -> str:
    """Return the folder of the journal objects."""
    return f"{workflow_folder(workflow_id)}/journal"


def journal_key(workflow_id: str, number: int) -> str:
    """Return the key of journal object ``number``."""
    return f"{journal_folder(workflow_id)}/{number:012d}"


def plan_key(workflow_id: str, digest: str) -> str:
    """Return the key of the plan with that digest."""
    return f"{workflow_folder(workflow_id)}/plans/{digest}"


# --- the append protocol ----------------------------------------------------------------------------------


def append_steps(key: str, data: bytes, nonce: str) -> Steps[JournalObject | None]:
    """Create ``key``, reading back whenever the outcome is unknown.

    Returns
    -------
    JournalObject or None
        None when this write made the object; else the object that another writer made.

    Raises
    ------
    StorageUnavailable
        After the last try.
    """
    for pause in (*_BACKOFF_SECONDS, None):
        try:
            if (yield PutIfAbsent(key, data)):
                return None
            # A first answer "exists" can only be another's write; a later one may be our own, landed late.
            found = yield Get(key)
            if found is not None:
                other = decode_object(key, found)
                return None if other.header.nonce == nonce else other
        except StorageUnavailable:
            if pause is None:
                raise
        if pause is not None:
            yield Pause(pause)
    message = f"{key} is reported to exist and cannot be read"
    raise StorageUnavailable(key, message)


# --- reading ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Tail:
    """The end of a journal as read: the newest header, its checksum, and what all records amount to."""

    header: Header
    sha256: str
    history: History


def read_journal(store: Store, workflow_id: str) -> Tail:
    """Read a journal from its newest fold on.

    Raises
    ------
    WorkflowNotFound
        When there is none.
    CorruptRecord
        When an object is damaged, missing in the middle, or not the successor of the one before it.
    StorageUnavailable
        When the store cannot be read.
    """
    try:
        return drive(read_steps(workflow_id), store)
    except WorkflowNotFound:
        message = f"no workflow {workflow_id!r} in {store.uri}"
        raise WorkflowNotFound(workflow_id, message) from None


def read_steps(workflow_id: str) -> Steps[Tail]:
    """Read a journal; see `read_journal`."""
    objects = yield from read_objects(workflow_id)
    newest = objects[-1]
    return Tail(newest.header, newest.sha256, history_of(objects))


def read_objects(workflow_id: str) -> Steps[list[JournalObject]]:
    """Return a journal's objects from its newest fold on; see `read_journal`."""
    for _ in range(_MOVED_TRIES):
        numbers = yield from _numbers(workflow_id)
        if not numbers:
            message = f"no workflow {workflow_id!r}"
            raise WorkflowNotFound(workflow_id, message)
        objects = yield from _read_from_base(workflow_id, numbers[-1])
        if objects is not None:
            return objects
    message = f"the journal of {workflow_id!r} was folded {_MOVED_TRIES} times while it was read; try again"
    raise StorageUnavailable(journal_folder(workflow_id), message)


def _numbers(workflow_id: str) -> Steps[list[int]]:
    keys = yield List(journal_folder(workflow_id))
    return sorted(number_of(key) for key in keys)


def number_of(key: str) -> int:
    """Return the number of the journal object at ``key``."""
    return int(key.rsplit("/", 1)[1])


def _read_from_base(workflow_id: str, last: int) -> Steps[list[JournalObject] | None]:
    newest = yield from read_object(workflow_id, last)
    if newest is None:
        return None
    objects = [newest]
    for number in range(last - 1, newest.header.base - 1, -1):
        found = yield from read_object(workflow_id, number)
        if found is None:
            # Either the owner folded the journal meanwhile, or the object is lost.
            if (yield from _numbers(workflow_id))[-1] > last:
                return None
            key = journal_key(workflow_id, number)
            message = f"{key} is missing from the journal; restore it from a backup"
            raise CorruptRecord(key, message)
        if objects[-1].header.previous != found.sha256:
            key = journal_key(workflow_id, objects[-1].header.number)
            message = f"{key} does not follow the object before it; the journal was altered"
            raise CorruptRecord(key, message)
        objects.append(found)
    objects.reverse()
    return objects


def read_object(workflow_id: str, number: int) -> Steps[JournalObject | None]:
    """Return one journal object, or None when it is absent; raises CorruptRecord."""
    key = journal_key(workflow_id, number)
    data = yield Get(key)
    if data is None:
        return None
    found = decode_object(key, data)
    if found.header.number != number:
        message = f"{key} holds object number {found.header.number}; the journal was altered"
        raise CorruptRecord(key, message)
    return found


def newest_generation(workflow_id: str) -> Steps[int]:
    """Return the generation that owns a workflow now; raises CorruptRecord."""
    while True:
        numbers = yield from _numbers(workflow_id)
        newest = yield from read_object(workflow_id, numbers[-1])
        if newest is not None:
            return newest.header.generation


def history_of(objects: Sequence[JournalObject]) -> History:
    """Return what objects in order amount to; the first is number 1 or a fold."""
    history = History()
    for index, found in enumerate(objects):
        acked_at = objects[index + 1].header.previous_acked_at if index + 1 < len(objects) else None
        if found.header.kind == "claim":
            history.reopen()
        history.add(with_commit_time(found.records, acked_at))
    return history


def with_commit_time(records: Iterable[Record], acked_at: float | None) -> list[Record]:
    """Return the records with ``committed_at`` filled in where it was unknown."""
    return [
        dataclasses.replace(record, committed_at=acked_at)
        if isinstance(record, Committed) and record.committed_at is None
        else record
        for record in records
    ]


# --- writing ----------------------------------------------------------------------------------------------


class Tenure:
    """One owner's end of a journal, as protocols. At most one append is in flight.

    Every method that returns `Steps` raises `StorageUnavailable` when the store did not answer within the
    tries, and `claim`, `append` and `make_sure` raise `Fenced` when another writer has taken the next number.

    Parameters
    ----------
    workflow_id, owner : str, Owner
        Whose tenure of what.
    new_nonce : callable
        Returns a name that no other write has.
    clock, monotonic : callable
        Unix seconds, and seconds that never go back.
    """

    def __init__(
        self,
        workflow_id: str,
        owner: Owner,
        new_nonce: Callable[[], str],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workflow_id = workflow_id
        self._owner = owner
        self._new_nonce = new_nonce
        self._clock = clock
        self._monotonic = monotonic
        self._acked_at: float | None = None
        self._verified_at = monotonic()
        self._last: Header | None = None
        self._last_sha256 = ""

    @property
    def generation(self) -> int:
        """Generation of the owner; 0 before a claim."""
        return 0 if self._last is None else self._last.generation

    @property
    def last_number(self) -> int:
        """Number of the newest object known to be durable; 0 before a claim."""
        return 0 if self._last is None else self._last.number

    @property
    def base(self) -> int:
        """Number of the newest fold."""
        return 1 if self._last is None else self._last.base

    def claim(self, tail: Tail | None, records: Sequence[Record] = ()) -> Steps[None]:
        """Open a new generation right after ``tail``; None starts the journal."""
        if tail is not None:
            self._last, self._last_sha256 = tail.header, tail.sha256
        yield from self._write("claim", records, generation=self.generation + 1)
        # A tail that was read long ago: its successor may have been collected, and the number been free again.
        newest = (yield from _numbers(self._workflow_id))[-1]
        if newest > self.last_number:
            message = f"workflow {self._workflow_id!r} went on while this process claimed it; this process stops"
            raise Fenced(self._workflow_id, message)

    def append(self, records: Sequence[Record], *, fold: bool = False) -> Steps[float]:
        """Append records as one object and return when it was known to be durable (Unix seconds)."""
        yield from self._write("fold" if fold else "append", records, generation=self.generation)
        assert self._acked_at is not None
        return self._acked_at

    def successor(self) -> Steps[Owner | None]:
        """Return who has written after this owner; an append of our own in flight is no successor."""
        found = yield from read_object(self._workflow_id, self.last_number + 1)
        return None if found is None or found.header.owner == self._owner else found.header.owner

    def make_sure(self, older_than_seconds: float) -> Steps[None]:
        """Look for a successor, if the last sign that there is none is older than that."""
        if self._monotonic() - self._verified_at < older_than_seconds:
            return
        successor = yield from self.successor()
        if successor is not None:
            message = f"workflow {self._workflow_id!r} was taken over by {successor}; this process stops"
            raise Fenced(self._workflow_id, message)
        self._verified_at = self._monotonic()

    def collect(self) -> Steps[None]:
        """Delete the objects before the newest fold, but for the claims."""
        assert self._last is not None
        for number in (yield from _numbers(self._workflow_id)):
            if number >= self._last.base:
                break
            found = yield from read_object(self._workflow_id, number)
            if found is not None and found.header.kind != "claim":
                yield Delete(journal_key(self._workflow_id, number))

    def _write(self, kind: str, records: Sequence[Record], generation: int) -> Steps[None]:
        number = self.last_number + 1
        header = Header(
            kind,
            number,
            generation,
            self._owner,
            self._new_nonce(),
            self._last_sha256,
            number if kind == "fold" else self.base,
            self._acked_at,
        )
        key = journal_key(self._workflow_id, number)
        data, checksum = encode_object(header, records)
        other = yield from append_steps(key, data, header.nonce)
        if other is not None:
            message = (
                f"workflow {self._workflow_id!r} was taken over by {other.header.owner} "
                f"(generation {other.header.generation}); this process stops"
            )
            raise Fenced(self._workflow_id, message)
        self._acked_at = self._clock()
        self._verified_at = self._monotonic()
        self._last, self._last_sha256 = header, checksum


class Journal:
    """A tenure driven against a store. Not thread safe: at most one append is in flight.

    Raises
    ------
    Fenced
        From `append`, `claim` and `make_sure`: another writer took the next number.
    StorageUnavailable
        When the store did not answer within the tries.
    """

    def __init__(self, store: Store, workflow_id: str, owner: Owner, new_nonce: Callable[[], str]) -> None:
        self._store = store
        self.tenure = Tenure(workflow_id, owner, new_nonce)

    @property
    def generation(self) -> int:
        """Generation of the owner; 0 before a claim."""
        return self.tenure.generation

    def claim(self, tail: Tail | None, records: Sequence[Record] = ()) -> None:
        """Open a new generation right after ``tail``; None starts the journal."""
        drive(self.tenure.claim(tail, records), self._store)

    def append(self, records: Sequence[Record], *, fold: bool = False) -> float:
        """Append records as one object and return when it was known to be durable (Unix seconds)."""
        return drive(self.tenure.append(records, fold=fold), self._store)

    def successor(self) -> Owner | None:
        """Return who has written after this owner; an append of our own in flight is no successor."""
        return drive(self.tenure.successor(), self._store)

    def make_sure(self, older_than_seconds: float) -> None:
        """Look for a successor, if the last sign that there is none is older than that."""
        drive(self.tenure.make_sure(older_than_seconds), self._store)

    def collect(self) -> None:
        """Delete the objects before the newest fold, but for the claims."""
        drive(self.tenure.collect(), self._store)
