"""Cutting sources into epochs: which records fall into which epoch.

The records of all splits form one sequence: blocks of 1,000 good records are taken round-robin over the
splits, in the order of the sources and of the splits in each. Where an epoch ends inside a block, the next
begins with the rest of that block before the turn passes on, so the sequence of bounded sources does not depend
on where it is cut: cut by count, their epochs are a function of a position. A live split that has nothing more
passes its turn on, so its epochs, and those cut by time, depend on when they were read. Whichever it is, the
epoch's ranges say what was taken of each split, and reading those again gives the same records.

A queue takes part as one split that stands now for this, now for that of its splits. Those that are over leave the
position: the queue's register, which moves on with it, remembers them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Final, TypeAlias, cast

from ingest.intervals import IDLE_SECONDS, Intervals
from ingest.schedule import Closing, Schedule, Tap
from ingest.source import (
    BadRecord,
    Block,
    Float64s,
    Ids,
    Int8s,
    JsonValue,
    LiveSource,
    Queue,
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
WAIT_SECONDS: Final = 0.2
"""How long to wait for one live source before looking at the others and for new splits."""

Position: TypeAlias = dict[str, JsonValue]
"""Where an epoch begins or ends, as JSON: ``splits`` (source, split, position and end of each, in order),
``turn`` (the split whose turn it is) and ``taken`` (the good records of its block that are taken already); cut by
event time, the ``interval`` and with each split what it has ``reached``."""

Range: TypeAlias = list[JsonValue]
"""What an epoch took of a split, as JSON: source, split, and the positions before and after."""


@dataclass(frozen=True, slots=True, eq=False)
class EpochBatch:
    """The records of one epoch.

    Attributes
    ----------
    src, dst
        n ids, the follower and the followed, ordered by (source, split, offset).
    op
        int8[n], +1 for an insert and -1 for a delete.
    time
        float64[n], Unix seconds; None where no record carries one.
    bad
        The records that could not be parsed, in the same order. They do not count as records of the epoch.
    begin, end
        The positions before the first record and after the last.
    last
        True when no record, good or bad, remains; never with a live source.
    ranges
        What was taken of each split that was read, in the order of the splits.
    due
        Unix seconds at which the schedule closed the epoch; None where it was full before, or there is none.
    offsets
        For each split that was read, the positions in it before and after, for display.
    since
        Unix seconds from which on the first of its records could have been read, or earlier where that is not known:
        when nothing was left to be read; None where it has none.
    watermark
        Cut by event time: where the interval begins, in Unix seconds, in which the next epoch lies; None where there is
        none yet. All splits that are waited for have come so far.
    """

    src: Ids
    dst: Ids
    op: Int8s
    time: Float64s | None
    bad: list[BadRecord]
    begin: Position
    end: Position
    last: bool
    offsets: dict[str, list[JsonValue]]
    ranges: list[Range]
    due: float | None = None
    since: float | None = None
    watermark: float | None = None


@dataclass(slots=True)
class _Split:
    """How far a split has been read; of a queue, the one that is being read, or "" between two."""

    source: str
    split: str
    position: JsonValue | None = None
    end: bool = False
    reached: float | None = None
    """Cut by event time, the greatest time of its records so far, the next one included where it is known."""

    @property
    def name(self) -> "_Name":
        return self.source, self.split


_Name: TypeAlias = tuple[str, str]
_Visit: TypeAlias = tuple[_Name, str, int]
"""A place among the splits, the split that was read there, and how many of a queue were over before: a name may
come again."""


@dataclass(slots=True)
class _Taken:
    """What an epoch has taken of a split so far."""

    name: _Name
    before: JsonValue
    after: JsonValue
    runs: list[Records] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)


@dataclass(slots=True)
class _Cut:
    """An epoch that is being cut, and where it has come to."""

    splits: list[_Split]
    turn: int
    in_block: int
    """Good records taken of the block of the split whose turn it is."""
    interval: int | None
    visits: dict[_Visit, _Taken] = field(default_factory=dict)
    records: int = 0
    bad: int = 0
    idle: int = 0
    """How many turns in a row brought nothing."""
    since: float | None = None
    """See `EpochBatch`, as of `due`."""
    due: float | None = None
    n_open: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_open = sum(not split.end for split in self.splits)

    @property
    def is_empty(self) -> bool:
        return not (self.records or self.bad)

    @property
    def nothing_waits(self) -> bool:
        return self.idle >= self.n_open

    def position(self) -> Position:
        """Return where it has come to."""
        shown = [asdict(split) for split in self.splits]
        for each in shown:
            if each["reached"] is None:
                del each["reached"]
        position: Position = {"splits": shown, "turn": self.turn, "taken": self.in_block}
        return position if self.interval is None else {**position, "interval": self.interval}


class EpochReader:
    """Reads epochs from sources, bounded and live ones side by side.

    Exactly as repeatable as its sources: it has no state but the position it is given, the registers of its queues,
    which move on with it, and with `epoch_seconds` the clock. Readers of splits are kept open between calls, so that
    reading on where the last epoch ended opens nothing again.

    Parameters
    ----------
    sources
        Each given once.
    epoch_edges
        The number of good records in an epoch; fewer only at the end of all splits, where the schedule closes
        it, or where `MAX_BAD_PER_EPOCH` bad records close it early, so that any input is read in bounded memory.
    block_records
        How many records are taken from a split in its turn.
    epoch_seconds
        Epochs also close at multiples of so many seconds, unless they are empty; None: only when they are full.
    clock
        Returns Unix seconds.
    event_seconds
        Epochs also close at multiples of so many seconds of event time; see `ingest.intervals`.
    idle_seconds
        A live split that has been silent for so long does not keep these open.
    closing
        Decides instead of `epoch_seconds` when else an epoch closes.
    tap
        Lets records through to be read.

    Raises
    ------
    SourceError
        A source is given twice.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        epoch_edges: int,
        block_records: int = BLOCK_RECORDS,
        epoch_seconds: float | None = None,
        clock: Callable[[], float] = time.time,
        event_seconds: float | None = None,
        idle_seconds: float = IDLE_SECONDS,
        closing: Closing | None = None,
        tap: Tap | None = None,
    ) -> None:
        if min(epoch_edges, block_records) < 1:
            message = f"an epoch or a block of {min(epoch_edges, block_records)} records; it must be at least 1"
            raise ValueError(message)
        self._sources: dict[str, Source] = {}
        for source in sources:
            if source.uri in self._sources:
                raise SourceError(source.uri, "the source is given twice")
            self._sources[source.uri] = source
        self._live = [cast(LiveSource, source) for source in sources if not source.bounded]
        self._queues = {source.uri: source for source in sources if isinstance(source, Queue)}
        self._bounded_splits = {
            source.uri: source.splits() for source in sources if source.bounded and source.uri not in self._queues
        }
        self._epoch_edges = epoch_edges
        self._block_records = block_records
        self._closing = closing if epoch_seconds is None else Schedule(epoch_seconds, clock)
        self._tap = tap
        self._intervals = None if event_seconds is None else Intervals(event_seconds, idle_seconds)
        self._clock = clock
        self._nothing_left_at: float | None = None  # when it last was so
        self._readers: dict[_Name, SplitReader] = {}  # of bounded sources, least recently read first
        self._live_readers: dict[_Name, SplitReader] = {}  # those of a source share a connection

    @property
    def repeats(self) -> bool:
        """Whether cutting again from a position gives the same epochs: nothing is live, a queue or by the clock."""
        return not (self._live or self._queues) and self._closing is None

    def start(self) -> Position:
        """Return the position before the first record."""
        return _Cut([_Split(*name) for name in self._splits()], turn=0, in_block=0, interval=None).position()

    def read(self, position: Position) -> EpochBatch:
        """Read the epoch that begins at a position; wait for it as long as its sources are live.

        Parameters
        ----------
        position
            What `start` returned, or the end of an epoch, also of another reader of the same sources.

        Raises
        ------
        SourceError
            A source cannot be read, or its splits are not those of the position. The position stays good.
        """
        for queue in self._queues.values():
            queue.rollback()
        cut = self._resume(position)
        if self._nothing_left_at is None:
            self._nothing_left_at = self._clock()
        if self._closing is not None:
            self._closing.begin()
        while not self._is_over(cut):
            if self._is_shut:
                self._wait_for_tap()
            elif cut.nothing_waits:
                self._wait(cut)
            else:
                self._take_turn(cut)
        if self._closing is not None:
            self._closing.next()
        batch = self._batch(position, cut)
        for queue in self._queues.values():
            queue.commit()
        return batch

    def reread(self, ranges: Sequence[Range]) -> Records:
        """Read the good records of an epoch again, by what it took of each split.

        Raises
        ------
        SourceError
            A source cannot be read, or has not kept what lies between the positions.
        """
        runs = []
        for source, split, before, after in ranges:
            if source not in self._sources:
                raise SourceError(source, "the source is not one of this run's")
            with closing(self._sources[source].open(split, before, after)) as reader:
                block = reader.read(self._epoch_edges)
                runs.append(block.records)
                while not block.end:
                    block = reader.read(self._epoch_edges)
                    runs.append(block.records)
                if reader.position != after:
                    detail = (
                        f"{split!r} was read up to {after} before, and now ends at {reader.position}: "
                        "it has changed since; put it right and resume"
                    )
                    raise SourceError(source, detail)
        return concatenate(runs) if runs else no_records(timed=False)

    def close(self) -> None:
        """Close what is open; the reader can be used again all the same."""
        for kept in (self._readers, self._live_readers):
            while kept:
                kept.popitem()[1].close()
        for source in self._sources.values():
            source.close()

    def __enter__(self) -> "EpochReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _splits(self) -> list[_Name]:
        """Return the splits that are there now, in order."""
        return [(uri, split) for uri, source in self._sources.items() for split in self._splits_of(source)]

    def _splits_of(self, source: Source) -> list[str]:
        if source.uri in self._queues:
            return [""]
        return self._bounded_splits[source.uri] if source.bounded else source.splits()

    def _place(self, split: _Split) -> _Name:
        """Return what stays the same of a split while a queue goes on."""
        return (split.source, "") if split.source in self._queues else split.name

    @property
    def _is_shut(self) -> bool:
        """Whether records may have to wait before they are let through."""
        return self._tap is not None and not self._tap.room

    def _is_over(self, cut: _Cut) -> bool:
        """Decide whether the epoch ends here; closes and intervals in which nothing came are passed over."""
        if cut.records >= self._epoch_edges or cut.bad >= MAX_BAD_PER_EPOCH:
            return True
        if not cut.n_open and not self._live:
            return True
        is_shut = self._is_shut
        if cut.nothing_waits and not is_shut and not self._any_held(cut):
            self._nothing_left_at = self._clock()
        nothing_waits = is_shut or cut.nothing_waits
        if self._closing is not None and self._closing.is_over(
            idle=nothing_waits, records=cut.records + cut.bad, since=cut.since
        ):
            if not cut.is_empty:
                cut.due = self._closing.due
                return True
            if nothing_waits:
                self._closing.next()
        return not is_shut and cut.nothing_waits and self._leaves_interval(cut)

    def _leaves_interval(self, cut: _Cut) -> bool:
        """Decide whether the epoch ends with its interval of event time, now that no split has more of it."""
        if self._intervals is None:
            return False
        places = {self._place(split): split for split in cut.splits}
        if self._intervals.is_over(cut.interval, places):
            cut.interval, cut.idle = self._intervals.after(cut.interval, cut.splits), 0
            return not cut.is_empty
        return not cut.is_empty and self._intervals.all_idle(places)

    def _take_turn(self, cut: _Cut) -> None:
        """Read on in the split whose turn it is; pass the turn on at the end of its block, or where it has no more."""
        split = cut.splits[cut.turn]
        starved = False
        if self._intervals is not None and self._intervals.is_held(split, cut.interval):
            starved = True
            cut.idle += not split.end
        elif not self._find_next(split):
            cut.n_open -= split.end
            starved, cut.idle = True, cut.idle + 1
        elif not split.end:
            room = min(self._block_records - cut.in_block, self._epoch_edges - cut.records)
            readable_at = self._nothing_left_at
            if self._tap is not None:
                room, readable_at = min(room, self._tap.room), self._tap.since
            block = self._read_split(split, room, cut)
            if self._tap is not None:
                self._tap.took(len(block.records))
            if len(block.records) or block.bad:
                if block.since is not None:
                    readable_at = min(block.since, self._clock())  # clocks of others may be ahead
                assert readable_at is not None
                cut.since = readable_at if cut.since is None else min(cut.since, readable_at)
            cut.in_block += len(block.records)
            cut.records += len(block.records)
            cut.bad += len(block.bad)
            cut.n_open -= split.end
            is_bounded = self._sources[split.source].bounded
            starved = block.head is not None or not (is_bounded or len(block.records) == room)
            cut.idle = 0 if len(block.records) or block.bad or block.end else cut.idle + 1
        if split.end or starved or cut.in_block == self._block_records:
            cut.turn, cut.in_block = (cut.turn + 1) % len(cut.splits), 0

    def _resume(self, position: Position) -> _Cut:
        """Return an epoch that begins at a position, with the splits that a live source has since got."""
        then = {self._place(split): split for split in (_Split(**split) for split in position["splits"])}
        now = self._splits()
        gone = [*(then.keys() - set(now))]
        new = [name for name in now if name not in then]
        odd = gone + [(uri, split) for uri, split in new if self._sources[uri].bounded]
        if not odd and [name for name in now if name in then] != list(then):
            odd = list(then)
        if odd:
            source, split = min(odd)
            detail = (
                f"the splits are not those the run began with ({split!r} is new, gone or in another place): "
                "put the old files back or start a new run"
            )
            raise SourceError(source, detail)
        splits = [then.get(name) or _Split(*name) for name in now]
        turn: int = position["turn"]
        if new and then:
            turn = now.index(list(then)[turn])
        return _Cut(splits, turn, position["taken"], position.get("interval"))

    def _wait(self, cut: _Cut) -> None:
        """Wait until a live source may have something, or for a moment, and look for new splits."""
        began = self._clock()
        seconds = WAIT_SECONDS / len(self._live)
        for source in self._live:
            left = seconds if self._closing is None else min(seconds, self._closing.seconds_left)
            source.wait(left)
        if self._intervals is not None:
            waited_for = [
                split for split in cut.splits if not split.end and not self._intervals.is_held(split, cut.interval)
            ]
            self._intervals.listened(map(self._place, waited_for), max(0.0, self._clock() - began))
        now = self._resume(cut.position())
        cut.splits, cut.turn, cut.n_open, cut.idle = now.splits, now.turn, now.n_open, 0

    def _any_held(self, cut: _Cut) -> bool:
        return self._intervals is not None and any(self._intervals.is_held(each, cut.interval) for each in cut.splits)

    def _wait_for_tap(self) -> None:
        assert self._tap is not None
        left = WAIT_SECONDS if self._closing is None else min(WAIT_SECONDS, self._closing.seconds_left)
        self._tap.wait(left)

    def _nothing_left(self, splits: list[_Split]) -> bool:
        """Tell whether every split is exhausted; one that was never read may be empty, so look into it."""
        if self._live:
            return False
        live = [split for split in splits if not split.end]
        if any(split.position is not None for split in live):  # its last block said that more follows
            return False
        for split in live:
            if split.source in self._queues:
                if not self._is_exhausted(split):
                    return False
                continue
            with closing(self._sources[split.source].open(split.split, None)) as reader:
                block = reader.read(1)
            if len(block.records) or block.bad or not block.end:
                return False
            split.end = True
        return True

    def _find_next(self, split: _Split) -> bool:
        """Tell whether there is a split to be read; of a queue between two, look for the next."""
        if split.end or split.split or split.source not in self._queues:
            return True
        queue = self._queues[split.source]
        found = queue.next()
        split.end = found is None and queue.bounded
        split.split = found or ""
        return found is not None

    def _is_exhausted(self, split: _Split) -> bool:
        """Tell whether a bounded queue has no more records; it is moved behind splits that hold none."""
        while self._find_next(split) and not split.end:
            reader = self._sources[split.source].open(split.split, None)
            with closing(reader):
                block = reader.read(1)
            if len(block.records) or block.bad or not block.end:
                return False
            self._finish(split, reader.position)
        return True

    def _finish(self, split: _Split, position: JsonValue) -> None:
        """Go on to what follows in a queue."""
        self._queues[split.source].finish(split.split, position)
        split.split, split.position, split.end = "", None, False

    def _read_split(self, split: _Split, max_records: int, cut: _Cut) -> Block:
        """Read on in a split, move it behind what was read, and add that to the epoch."""
        # Out of the cache while it is read: a reader that was stopped half-way must not be found there again.
        kept = self._readers if split.source in self._bounded_splits else self._live_readers
        reader = kept.pop(split.name, None)
        if reader is not None and reader.position != split.position:
            reader.close()
            reader = None
        if reader is None:
            reader = self._sources[split.source].open(split.split, split.position)
        before = reader.position
        try:
            if self._intervals is None:
                block = reader.read(max_records)
            else:
                block = reader.read(max_records, self._intervals.end_of(cut.interval))
                self._follow(split, block)
        except BaseException:
            reader.close()
            raise
        name = split.name
        split.position, split.end = reader.position, block.end
        if block.end:
            reader.close()
        else:
            if kept is self._readers and len(kept) == MAX_OPEN_SPLITS:
                kept.pop(next(iter(kept))).close()
            kept[split.name] = reader
        queue = self._queues.get(split.source)
        looked_into = split.source in self._bounded_splits and block.head is None
        if reader.position != before or block.bad or looked_into:
            visit = (self._place(split), name[1], 0 if queue is None else len(queue.register))
            taken = cut.visits.setdefault(visit, _Taken(name, before, before))
            taken.after = split.position
            taken.runs.append(block.records)
            taken.bad.extend(block.bad)
        if queue is not None and block.end:
            self._finish(split, split.position)
        return block

    def _follow(self, split: _Split, block: Block) -> None:
        """Note how far a split has come in event time."""
        assert self._intervals is not None
        if len(block.records) or block.bad or block.end or block.head is not None:
            self._intervals.heard(self._place(split))
        shown = [] if block.head is None else [block.head]
        if len(block.records):
            if block.records.time is None:
                raise SourceError(split.source, f"{split.split!r} has records without a time, by which epochs are cut")
            shown.append(float(block.records.time.max()))
        if shown:
            split.reached = max(shown) if split.reached is None else max(*shown, split.reached)

    def _batch(self, begin: Position, cut: _Cut) -> EpochBatch:
        last = self._nothing_left(cut.splits)
        order = {self._place(split): number for number, split in enumerate(cut.splits)}
        in_order = [taken for _, taken in sorted(cut.visits.items(), key=lambda item: order[item[0][0]])]
        runs = [run for each in in_order for run in each.runs]
        records = concatenate(runs) if runs else no_records(timed=False)
        labels = _labels(dict.fromkeys([split.name for split in cut.splits] + [each.name for each in in_order]))
        return EpochBatch(
            src=records.src,
            dst=records.dst,
            op=records.op,
            time=records.time,
            bad=[record for each in in_order for record in each.bad],
            begin=begin,
            end=cut.position(),
            last=last,
            offsets={labels[each.name]: [_offset(each.before), _offset(each.after)] for each in cut.visits.values()},
            ranges=[[*each.name, each.before, each.after] for each in in_order],
            due=cut.due,
            since=cut.since,
            watermark=self._intervals.begin_of(cut.interval) if self._intervals and cut.interval is not None else None,
        )


def _offset(position: JsonValue) -> JsonValue:
    """Return what is to be displayed of a position: a queue's says also what it is an offset of."""
    if isinstance(position, dict):
        return position["at"]
    return 0 if position is None else position


def _labels(names: Iterable[_Name]) -> dict[_Name, str]:
    """Name splits for display: by their source too where two have the same name."""
    times = Counter(split for _, split in names)
    return {(uri, split): split if times[split] == 1 else f"{uri}#{split}" for uri, split in names}
