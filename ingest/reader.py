"""One reader for every format: it cuts chunks of parsed records to the block sizes it is asked for.

A format is a generator of chunks that starts at a position. Where its chunks are cut is its own business (a
megabyte of text, a batch of rows); `ChunkedReader` hides the cuts, so that what a reader returns depends on
its position and nothing else.
"""

import math
from bisect import bisect_right
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from ingest.source import (
    MAX_BAD_PER_BLOCK,
    BadRecord,
    Block,
    Int64s,
    Records,
    SourceError,
    concatenate,
    no_records,
)


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A parsed run of one split.

    Attributes
    ----------
    records
        The n good records.
    starts, ends
        int64[n], where each good record starts, and the position just after it.
    bad
        The bad records, in offset order.
    bad_ends
        The position just after each bad record.
    reached
        Where the split goes on after the chunk, where that is more than its last record's end.
    since
        Unix seconds from which on the first of its records could have been read; None where that is not known.
    """

    records: Records
    starts: Int64s
    ends: Int64s
    bad: tuple[BadRecord, ...] = ()
    bad_ends: tuple[int, ...] = ()
    reached: int = 0
    since: float | None = None

    def end(self, position: int) -> int:
        """Return the position just after the chunk, or `position` where that is later."""
        ends: list[int] = self.ends[-1:].tolist()
        return max([position, *ends, *self.bad_ends[-1:], self.reached])

    def up_to(self, position: int) -> "Chunk":
        """Return the part of the chunk that ends at a position."""
        good = int(np.searchsorted(self.ends, position, side="right"))
        bad = bisect_right(self.bad_ends, position)
        return Chunk(
            self.records[:good],
            self.starts[:good],
            self.ends[:good],
            self.bad[:bad],
            self.bad_ends[:bad],
            min(self.reached, position),
            self.since,
        )


Chunks: TypeAlias = Generator[Chunk, None, None]
LiveChunks: TypeAlias = Generator[Chunk | None, None, None]
"""Chunks, and None where a live split has nothing yet."""


_END: Final = Chunk(no_records(timed=False), np.empty(0, np.int64), np.empty(0, np.int64))


class ChunkedReader:
    """A `SplitReader` over a generator of chunks.

    Parameters
    ----------
    chunks
        The chunks from `position` on; closed with the reader.
    position
        Where the first chunk starts.
    timed
        Whether the records carry a time.
    until
        Where to end; None where the chunks do.
    """

    def __init__(self, chunks: LiveChunks, position: int, timed: bool, until: int | None = None) -> None:
        self._chunks = chunks
        self._position = position
        self._until = until
        self._nothing = no_records(timed)
        self._chunk = Chunk(self._nothing, np.empty(0, np.int64), np.empty(0, np.int64))
        self._good = self._bad = 0  # how many of the chunk's records were returned
        self._error: SourceError | None = None
        self._idle = False

    @property
    def position(self) -> int:
        """The place just after the last record returned."""
        return self._position

    def read(self, max_records: int, before: float = math.inf) -> Block:
        """Return the next run of records; see `SplitReader.read`."""
        if max_records < 1:
            message = f"max_records must be at least 1, not {max_records}"
            raise ValueError(message)
        runs: list[Records] = []
        bad: list[BadRecord] = []
        good = 0
        since: float | None = None
        while True:
            if self._exhausted() and not self._next_chunk(raise_error=not runs and not bad):
                end = self._error is None and not self._idle
                break
            run, faults = self._take(max_records - good, MAX_BAD_PER_BLOCK - len(bad), before)
            if len(run):
                runs.append(run)
                good += len(run)
            bad.extend(faults)
            if since is None and (len(run) or faults):
                since = self._chunk.since
            if not self._exhausted():  # a record is left that does not fit: the run is as long as can be
                end = False
                break
        records = runs[0] if len(runs) == 1 else concatenate(runs) if runs else self._nothing
        return Block(records, tuple(bad), end, self._head(before), since)

    def close(self) -> None:
        """Close the generator, and with it what it has open."""
        self._chunks.close()

    def _exhausted(self) -> bool:
        return self._good == len(self._chunk.records) and self._bad == len(self._chunk.bad)

    def _next_chunk(self, raise_error: bool) -> bool:
        """Step to the next chunk; False when there is none, or none yet.

        An error is kept: what was read whole before it is returned first, and no later read can mistake the
        generator it ended for the end of the split.
        """
        self._idle = False
        self._position = max(self._position, self._chunk.reached)
        if self._until is not None and self._position >= self._until:
            return False
        if self._error is None:
            try:
                chunk = next(self._chunks, _END)
            except SourceError as error:
                self._error = error
            else:
                if chunk is _END:
                    return False
                if chunk is None:
                    self._idle = True
                    return False
                if self._until is not None:
                    chunk = chunk.up_to(self._until)
                self._chunk, self._good, self._bad = chunk, 0, 0
                return True
        if raise_error:
            raise self._error
        return False

    def _head(self, before: float) -> float | None:
        """Return the time of the next record where it is a good one, at hand, and not before that time."""
        chunk, good, bad = self._chunk, self._good, self._bad
        if chunk.records.time is None or good == len(chunk.records):
            return None
        if bad < len(chunk.bad) and chunk.bad[bad].offset < chunk.starts[good]:
            return None
        time = float(chunk.records.time[good])
        return time if time >= before else None

    def _take(self, max_good: int, max_bad: int, before: float) -> tuple[Records, tuple[BadRecord, ...]]:
        """Take the longest run of the chunk that is within all limits, and move the position behind it."""
        chunk, good, bad = self._chunk, self._good, self._bad
        good_stop = min(len(chunk.records), good + max_good)
        if before < math.inf and chunk.records.time is not None:
            beyond = chunk.records.time[good:good_stop] >= before
            if beyond.any():
                good_stop = good + int(beyond.argmax())
        bad_stop = min(len(chunk.bad), bad + max_bad)
        if bad < len(chunk.bad):  # the first record beyond either limit ends the run for both kinds
            if bad_stop < len(chunk.bad):
                limit = chunk.bad[bad_stop].offset
                good_stop = min(good_stop, int(np.searchsorted(chunk.starts, limit)))
            if good_stop < len(chunk.records):
                limit = int(chunk.starts[good_stop])
                while bad_stop > bad and chunk.bad[bad_stop - 1].offset > limit:
                    bad_stop -= 1
        if good_stop > good:
            self._position = int(chunk.ends[good_stop - 1])
        if bad_stop > bad:
            self._position = max(self._position, chunk.bad_ends[bad_stop - 1])
        self._good, self._bad = good_stop, bad_stop
        return chunk.records[good:good_stop], chunk.bad[bad:bad_stop]
