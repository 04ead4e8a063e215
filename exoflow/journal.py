"""The commit protocol: who owns a workflow, and which records count.

A journal is a sequence of numbered objects, each created with put-if-absent, so that exactly one writer
gets each number. An object is a header line, a line per record, and a trailer line with the checksum of
all before it; the header names the owner's generation and nonce and the predecessor's checksum.

- An owner has at most one append in flight. A claim is an append that opens a new generation; it takes the
  number right after the last object the claimant read, so a stale owner's next append collides with it, for
  claims are never collected.
- Whenever the outcome of an append is not known, the writer reads back: its own nonce = done, another's =
  fenced, absent = try again.
- A fold repeats every live record, so that older objects may be deleted; each header says where the newest
  fold is.

The protocol itself is `append_steps`, a generator of store operations that the simulator drives too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from exoflow.errors import CorruptRecord, Fenced, StorageUnavailable, WorkflowNotFound
from exoflow.records import Committed, History, Record, record_from_json, record_to_json
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


def encode_object(header: Header, records: Iterable[Record]) -> bytes:
    """Return the bytes of a journal object."""
    lines = [_line({"format": FORMAT, **dataclasses.asdict(header)})]
    lines += [_line(record_to_json(record)) for record in records]
    body = b"".join(lines)
    return body + _line({"sha256": hashlib.sha256(body).hexdigest()})


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


def _line(shown: dict[str, Any]) -> bytes:
    return json.dumps(shown, separators=(",", ":")).encode("ascii") + b"\n"


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


# --- the append protocol ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class PutIfAbsent:
    """Store operation: answered True, False, or `StorageUnavailable` thrown in when nobody knows."""

    key: str
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Get:
    """Store operation: answered bytes or None."""

    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Pause:
    """Wait before the next try."""

    seconds: float


StoreStep = PutIfAbsent | Get | Pause


def append_steps(key: str, data: bytes, nonce: str) -> Generator[StoreStep, Any, JournalObject | None]:
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


def drive(
    steps: Generator[StoreStep, Any, JournalObject | None],
    store: Store,
    sleep: Callable[[float], None] = time.sleep,
) -> JournalObject | None:
    """Run `append_steps` against a store."""
    answer: Any = None
    failure: StorageUnavailable | None = None
    while True:
        try:
            step = steps.throw(failure) if failure is not None else steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        answer = failure = None
        try:
            match step:
                case PutIfAbsent():
                    answer = store.put_if_absent(step.key, step.data)
                case Get():
                    answer = store.get(step.key)
                case Pause():
                    sleep(step.seconds)
        except StorageUnavailable as error:
            failure = error


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
    for _ in range(_MOVED_TRIES):
        numbers = sorted(int(key.rsplit("/", 1)[1]) for key in store.list(journal_folder(workflow_id)))
        if not numbers:
            message = f"no workflow {workflow_id!r} in {store.uri}"
            raise WorkflowNotFound(workflow_id, message)
        tail = _read_from_base(store, workflow_id, numbers[-1])
        if tail is not None:
            return tail
    message = f"the journal of {workflow_id!r} was folded {_MOVED_TRIES} times while it was read; try again"
    raise StorageUnavailable(journal_folder(workflow_id), message)


def _read_from_base(store: Store, workflow_id: str, last: int) -> Tail | None:
    newest = _read_object(store, workflow_id, last)
    if newest is None:
        return None
    objects = [newest]
    for number in range(last - 1, newest.header.base - 1, -1):
        found = _read_object(store, workflow_id, number)
        if found is None:
            # Either the owner folded the journal meanwhile, or the object is lost.
            later = store.list(journal_folder(workflow_id))
            if int(later[-1].rsplit("/", 1)[1]) > last:
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
    return Tail(newest.header, newest.sha256, _history(objects))


def _read_object(store: Store, workflow_id: str, number: int) -> JournalObject | None:
    key = journal_key(workflow_id, number)
    data = store.get(key)
    if data is None:
        return None
    found = decode_object(key, data)
    if found.header.number != number:
        message = f"{key} holds object number {found.header.number}; the journal was altered"
        raise CorruptRecord(key, message)
    return found


def _history(objects: Sequence[JournalObject]) -> History:
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


class Journal:
    """One owner's end of a journal. Not thread safe: at most one append is in flight.

    Raises
    ------
    Fenced
        From `append` and `claim`: another writer took the next number.
    StorageUnavailable
        When the store did not answer within the tries.
    """

    def __init__(self, store: Store, workflow_id: str, owner: Owner, new_nonce: Callable[[], str]) -> None:
        self._store = store
        self._workflow_id = workflow_id
        self._owner = owner
        self._new_nonce = new_nonce
        self._acked_at: float | None = None
        self._last: Header | None = None
        self._last_sha256 = ""

    def use(self, store: Store) -> None:
        """Write to another view of the same store from now on; for the simulator."""
        self._store = store

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

    def claim(self, tail: Tail | None, records: Sequence[Record] = ()) -> None:
        """Open a new generation right after ``tail``; None starts the journal."""
        if tail is not None:
            self._last, self._last_sha256 = tail.header, tail.sha256
        self._write("claim", records, generation=self.generation + 1)

    def append(self, records: Sequence[Record], *, fold: bool = False) -> float:
        """Append records as one object and return when it was known to be durable (Unix seconds)."""
        self._write("fold" if fold else "append", records, generation=self.generation)
        assert self._acked_at is not None
        return self._acked_at

    def successor(self) -> Owner | None:
        """Return who has written after this owner; an append of our own in flight is no successor."""
        number = self.last_number + 1
        found = self._store.get(journal_key(self._workflow_id, number))
        if found is None:
            return None
        owner = decode_object(journal_key(self._workflow_id, number), found).header.owner
        return None if owner == self._owner else owner

    def collect(self) -> None:
        """Delete the objects before the newest fold, but for the claims."""
        assert self._last is not None
        for key in self._store.list(journal_folder(self._workflow_id)):
            if int(key.rsplit("/", 1)[1]) >= self._last.base:
                break
            data = self._store.get(key)
            if data is not None and decode_object(key, data).header.kind != "claim":
                self._store.delete(key)

    def _write(self, kind: str, records: Sequence[Record], generation: int) -> None:
        number = 1 if self._last is None else self._last.number + 1
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
        data = encode_object(header, records)
        other = drive(append_steps(key, data, header.nonce), self._store)
        if other is not None:
            message = (
                f"workflow {self._workflow_id!r} was taken over by {other.header.owner} "
                f"(generation {other.header.generation}); this process stops"
            )
            raise Fenced(self._workflow_id, message)
        self._acked_at = time.time()
        self._last = header
        self._last_sha256 = decode_object(key, data).sha256
