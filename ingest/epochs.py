"""Cutting sources into epochs by count: which records fall into which epoch is a function of a position.

The records of all splits form one sequence: blocks of 1,000 good records are taken round-robin over the
splits, in the order of the sources and of the names in each, until all are exhausted. An epoch is the next so
many records of that sequence. Where an epoch ends inside a block, the next begins with the rest of that block
before the turn passes on, so the sequence does not depend on where it is cut.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Final, TypeAlias

from ingest.source import (
    BadRecord,
    Block,
    Float64s,
    Int8s,
    Int64s,
    JsonValue,
    Records,
    Source,
    SourceError,
    SplitReader,
    concatenate,
    no_records,
)

BLOCK_RECORDS: Final = 1000
MAX_BAD_PER_EPOCH: Final = 10_000
MAX_OPEN_SPLITS: Final = 256

Position: TypeAlias = dict[str, JsonValue]
"""Where an epoch begins or ends, as JSON: ``splits`` (source, split, position and end of each, in order),
``turn`` (the split whose turn it is) and ``taken`` (the good records of its block that are taken already)."""


@dataclass(frozen=True, slots=True, eq=False)
class EpochBatch:
    """The records of one epoch.

    Attributes
    ----------
    src, dst
        int64[n], the follower and the followed, ordered by (source, split, offset).
    op
        int8[n], +1 for an insert and -1 for a delete.
    time
        float64[n], Unix seconds; None where no record carries one.
    bad
        The records that could not be parsed, in the same order. They do not count as records of the epoch.
    begin, end
        The positions before the first record and after the last.
    last
        True when no record, good or bad, remains.
    offsets
        For each split that was read, the positions in it before and after, for display.
    """

    src: Int64s
    dst: Int64s
    op: Int8s
    time: Float64s | None
    bad: list[BadRecord]
    begin: Position
    end: Position
    last: bool
    offsets: dict[str, list[JsonValue]]


@dataclass(slots=True)
class _Split:
    """How far a split has been read."""

    source: str
    split: str
    position: JsonValue | None = None
    end: bool = False


class EpochReader:
    """Reads epochs of so many records from bounded sources.

    Exactly as repeatable as its sources: it has no state but the position it is given. Readers of splits are
    kept open between calls, so that reading on where the last epoch ended opens nothing again.

    Parameters
    ----------
    sources
        Bounded sources, each given once.
    epoch_edges
        The number of good records in an epoch; fewer only at the end of all splits, or where
        `MAX_BAD_PER_EPOCH` bad records close it early, so that any input is read in bounded memory.
    block_records
        How many records are taken from a split in its turn.

    Raises
    ------
    SourceError
        A source is given twice or has no end.
    """

    def __init__(self, sources: Sequence[Source], epoch_edges: int, block_records: int = BLOCK_RECORDS) -> None:
        if min(epoch_edges, block_records) < 1:
            message = f"an epoch or a block of {min(epoch_edges, block_records)} records; it must be at least 1"
            raise ValueError(message)
        self._sources: dict[str, Source] = {}
        for source in sources:
            if source.uri in self._sources:
                raise SourceError(source.uri, "the source is given twice")
            if not source.bounded:
                raise SourceError(source.uri, "the source has no end: it cannot be cut by count alone")
            self._sources[source.uri] = source
        self._splits = [(source.uri, split) for source in sources for split in source.splits()]
        self._labels = _labels(self._splits)
        self._epoch_edges = epoch_edges
        self._block_records = block_records
        self._readers: dict[int, SplitReader] = {}  # by index of the split, least recently read first

    def start(self) -> Position:
        """Return the position before the first record."""
        return _to_json([_Split(source, split) for source, split in self._splits], turn=0, taken=0)

    def read(self, position: Position) -> EpochBatch:
        """Read the epoch that begins at a position.

        Parameters
        ----------
        position
            What `start` returned, or the end of an epoch, also of another reader of the same sources.

        Raises
        ------
        SourceError
            A source cannot be read, or its splits are not those of the position. The position stays good.
        """
        splits, turn, taken = self._resume(position)
        runs: list[list[Records]] = [[] for _ in splits]
        bad: list[list[BadRecord]] = [[] for _ in splits]
        offsets: dict[str, list[JsonValue]] = {}
        n_good = n_bad = 0
        n_live = sum(not split.end for split in splits)
        while n_live and n_good < self._epoch_edges and n_bad < MAX_BAD_PER_EPOCH:
            split = splits[turn]
            if not split.end:
                room = min(self._block_records - taken, self._epoch_edges - n_good)
                before, block = self._read_split(turn, split, room)
                offsets.setdefault(self._labels[turn], [before, None])[1] = split.position
                runs[turn].append(block.records)
                bad[turn].extend(block.bad)
                taken += len(block.records)
                n_good += len(block.records)
                n_bad += len(block.bad)
                n_live -= split.end
            if split.end or taken == self._block_records:
                turn, taken = (turn + 1) % len(splits), 0
        last = self._nothing_left(splits)
        in_order = [run for of_split in runs for run in of_split]
        records = concatenate(in_order) if in_order else no_records(timed=False)
        return EpochBatch(
            src=records.src,
            dst=records.dst,
            op=records.op,
            time=records.time,
            bad=[record for of_split in bad for record in of_split],
            begin=position,
            end=_to_json(splits, turn, taken),
            last=last,
            offsets=offsets,
        )

    def close(self) -> None:
        """Close what is open; the reader can be used again all the same."""
        while self._readers:
            self._readers.popitem()[1].close()

    def __enter__(self) -> "EpochReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resume(self, position: Position) -> tuple[list[_Split], int, int]:
        splits = [_Split(**split) for split in position["splits"]]
        then = [(split.source, split.split) for split in splits]
        if then != self._splits:
            source, split = min(set(then) ^ set(self._splits), default=then[0])
            detail = (
                f"the splits are not those the run began with ({split!r} is new, gone or in another place): "
                "put the old files back or start a new run"
            )
            raise SourceError(source, detail)
        return splits, position["turn"], position["taken"]

    def _nothing_left(self, splits: list[_Split]) -> bool:
        """Tell whether every split is exhausted; one that was never read may be empty, so look into it."""
        live = [split for split in splits if not split.end]
        if any(split.position is not None for split in live):  # its last block said that more follows
            return False
        for split in live:
            with closing(self._sources[split.source].open(split.split, None)) as reader:
                block = reader.read(1)
            if len(block.records) or block.bad or not block.end:
                return False
            split.end = True
        return True

    def _read_split(self, number: int, split: _Split, max_records: int) -> tuple[JsonValue, Block]:
        """Read on in a split; return the position before and the block, and move the split behind it."""
        # Out of the cache while it is read: a reader that was stopped half-way must not be found there again.
        reader = self._readers.pop(number, None)
        if reader is not None and reader.position != split.position:
            reader.close()
            reader = None
        if reader is None:
            reader = self._sources[split.source].open(split.split, split.position)
        before = reader.position
        try:
            block = reader.read(max_records)
        except BaseException:
            reader.close()
            raise
        split.position, split.end = reader.position, block.end
        if block.end:
            reader.close()
        else:
            self._keep(number, reader)
        return before, block

    def _keep(self, number: int, reader: SplitReader) -> None:
        if len(self._readers) == MAX_OPEN_SPLITS:
            self._readers.pop(next(iter(self._readers))).close()
        self._readers[number] = reader


def _labels(splits: list[tuple[str, str]]) -> list[str]:
    """Name splits for display: by their source too where two have the same name."""
    times = Counter(split for _, split in splits)
    return [split if times[split] == 1 else f"{uri}#{split}" for uri, split in splits]


def _to_json(splits: list[_Split], turn: int, taken: int) -> Position:
    return {"splits": [asdict(split) for split in splits], "turn": turn, "taken": taken}
