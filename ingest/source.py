"""What a source is: its errors, its records and the contract every source keeps.

A source is a set of *splits* that can be read independently. A reader of a split returns blocks of records
and can always name its *position*, the place just after the last record it returned. All state comes from
the position: a reader opened at a position yields exactly what a reader that was read up to it would yield
next, and one opened from a position up to a later one yields what lies between, as often as one likes. That
is what lets a run resume after a crash without losing or doubling a record.

A source is *bounded* when all its splits have an end; a read then waits for its records however long they
take. Else it is *live*: a split may have nothing yet, and splits may appear while it is read.

Most sources are read split by split in turns. A *queue* is a source whose splits come one after the other and are
read once each, to their ends: what is over need not be named again, so its position stays small for ever.

Errors::

    IngestError
        SourceError(uri, detail)    a source cannot be opened or read: what, where, what to do
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ingest.names import Names
from ingest.register import Register

MAX_RAW_BYTES = 4 * 1024
"""Bytes kept of a record that could not be parsed: all of nearly any, and an epoch of them fits in memory."""

MAX_BAD_PER_BLOCK = 1000
"""Bad records one block may hold, so that a file that is no edge list at all is read in bounded memory."""

JsonValue: TypeAlias = Any
"""A value that survives ``json.loads(json.dumps(value))`` unchanged."""

Int64s: TypeAlias = npt.NDArray[np.int64]
Int8s: TypeAlias = npt.NDArray[np.int8]
Float64s: TypeAlias = npt.NDArray[np.float64]
Ids: TypeAlias = Int64s | Names
"""A column of ids: numbers, or names. One without values may be of either kind."""


class IngestError(Exception):
    """The root of every error this package raises on purpose."""


class SourceError(IngestError):
    """A source cannot be opened or read.

    Parameters
    ----------
    uri
        The source as the user named it.
    detail
        What was wrong, where (file, offset, parameter) and what to do.
    """

    def __init__(self, uri: str, detail: str) -> None:
        super().__init__(uri, detail)  # both in args, so that the error survives pickling
        self.uri = uri
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.uri}: {self.detail}"


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """One run of parsed records of one split, in offset order.

    Attributes
    ----------
    src, dst
        n ids, the follower and the followed.
    op
        int8[n], +1 for an insert and -1 for a delete.
    time
        float64[n], Unix seconds, or None where the records carry no time.
    """

    src: Ids
    dst: Ids
    op: Int8s
    time: Float64s | None

    def __len__(self) -> int:
        return len(self.src)

    def __getitem__(self, run: slice) -> "Records":
        """Return the records of ``run`` as views."""
        time = None if self.time is None else self.time[run]
        return Records(self.src[run], self.dst[run], self.op[run], time)

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Records":
        """Return copies of the records that are chosen."""
        time = None if self.time is None else self.time[chosen]
        return Records(_chosen(self.src, chosen), _chosen(self.dst, chosen), self.op[chosen], time)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be parsed.

    Attributes
    ----------
    source
        The URI of the source.
    split
        The name of the split in it.
    offset
        Where the record starts: a byte of the uncompressed text, a row number, or the offset of a message.
    raw
        The record without its line end, cut at `MAX_RAW_BYTES`.
    reason
        What was wrong with it.
    cut
        Whether there was more of it than `raw`.
    """

    source: str
    split: str
    offset: int
    raw: bytes
    reason: str
    cut: bool = False

    @staticmethod
    def of(
        source: str, split: str, offset: int, whole: bytes, reason: str, max_bytes: int = MAX_RAW_BYTES
    ) -> "BadRecord":
        """Return a bad record that keeps as much of `whole` as may be kept."""
        return BadRecord(source, split, offset, whole[:max_bytes], reason, cut=len(whole) > max_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """What one `SplitReader.read` returned.

    Attributes
    ----------
    records
        The good records, in offset order.
    bad
        The bad records before, between and directly after them, in offset order.
    end
        True when the split is exhausted, or has been read up to where its reader was to end: no record, good
        or bad, follows. An empty block whose end is False says that a live split has nothing yet.
    head
        The time of the next record, in Unix seconds, where the read ended because of it; else None.
    since
        Unix seconds from which on the first of the records could have been read; None where the source does not say.
    """

    records: Records
    bad: tuple[BadRecord, ...]
    end: bool
    head: float | None = None
    since: float | None = None


class SplitReader(Protocol):
    """Reads one split forwards from the position it was opened at."""

    @property
    def position(self) -> JsonValue:
        """The place just after the last record returned; `Source.open` takes it back."""
        ...

    def read(self, max_records: int, before: float = math.inf) -> Block:
        """Return the next run of records.

        Parameters
        ----------
        max_records
            The number of good records to return at most, at least 1.
        before
            Unix seconds; the run ends before the first good record whose time is this or later.

        Returns
        -------
        Block
            The longest run that holds at most `max_records` good and `MAX_BAD_PER_BLOCK` bad records; of a live
            split, of what is there now.

        Raises
        ------
        SourceError
            The source cannot be read on. `position` is unchanged, so nothing is lost.
        """
        ...

    def close(self) -> None:
        """Release what the reader holds; it must not be read afterwards."""
        ...


class Source(Protocol):
    """A set of splits."""

    @property
    def uri(self) -> str:
        """The source as the user named it."""
        ...

    @property
    def bounded(self) -> bool:
        """Whether every split has an end."""
        ...

    def splits(self) -> list[str]:
        """Return the names of the splits, in their order; of a live source there may be more later."""
        ...

    def open(self, split: str, position: JsonValue | None, until: JsonValue | None = None) -> SplitReader:
        """Open a split at a position a reader of it returned, or at its beginning where that is None.

        With a later position `until` the reader ends there, and waits for what lies between.
        """
        ...

    def settle(self) -> JsonValue | None:
        """Return what must be settled once, when a run begins, and then stay: such as where "latest" is.

        `ingest.uri.open_source` takes it back. None of a source that is the same whenever it is opened.
        """
        ...

    def close(self) -> None:
        """Release what the source itself holds, such as a connection; it can be used again all the same."""
        ...


class LiveSource(Source, Protocol):
    """A source that has no end, or not yet."""

    def wait(self, seconds: float) -> None:
        """Return when a split may have records, after `seconds` at the latest.

        Raises
        ------
        SourceError
            The source cannot be read and waiting longer will not help.
        """
        ...


class Queue(abc.ABC):
    """A source whose splits come one after the other; it is a `Source`, and where it is not bounded a `LiveSource`.

    Attributes
    ----------
    register
        The splits that are over. Together with a position in the split that is being read it says where the queue
        stands.
    """

    def __init__(self) -> None:
        self.register = Register()

    @property
    @abc.abstractmethod
    def bounded(self) -> bool:
        """Whether the queue has an end."""

    @abc.abstractmethod
    def next(self) -> str | None:
        """Return the split to be read next; None where there is none, of a bounded queue: no more.

        Raises
        ------
        SourceError
            It cannot be told.
        """

    @abc.abstractmethod
    def finish(self, split: str, position: JsonValue) -> None:
        """Note that a split is over, and where it ended."""

    def commit(self) -> None:
        """Let what was finished count."""
        self.register.commit()

    def rollback(self) -> None:
        """Forget what was finished since the last `commit`: it will be read again."""
        self.register.rollback()


def concatenate(runs: Sequence[Records]) -> Records:
    """Copy runs of records into one, in the given order.

    Parameters
    ----------
    runs
        At least one run; all of them timed or none.

    Raises
    ------
    IngestError
        Some runs carry a time and some do not.
    """
    times = [run.time for run in runs if run.time is not None]
    if times and len(times) != len(runs):
        message = "records with a time and records without one cannot be mixed: give every source a time column"
        raise IngestError(message)
    return Records(
        _one_column([run.src for run in runs]),
        _one_column([run.dst for run in runs]),
        np.concatenate([run.op for run in runs]),
        np.concatenate(times) if times else None,
    )


def _one_column(columns: Sequence[Ids]) -> Ids:
    names = [column for column in columns if not isinstance(column, np.ndarray)]
    return pa.concat_arrays(names) if names else np.concatenate(columns)


def _chosen(column: Ids, chosen: npt.NDArray[np.bool_]) -> Ids:
    return column[chosen] if isinstance(column, np.ndarray) else column.filter(pa.array(chosen))


def no_records(timed: bool) -> Records:
    """Return a run of no records, with or without a time."""
    return Records(
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        np.empty(0, np.int8),
        np.empty(0, np.float64) if timed else None,
    )
