"""Epochs by event time: sources of different speeds, silent ones, and records that come in another order."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import EpochBatch, EpochReader, SourceError, open_source
from ingest.intervals import GREATEST_SECONDS, Intervals
from ingest.reader import Chunk, ChunkedReader
from ingest.source import BadRecord, Records

BAD = None
"""Instead of a time: a record that cannot be parsed."""
Script = list[float | None]


@dataclass
class World:
    """A clock that goes on while a reader waits, and what arrives meanwhile."""

    random: random.Random
    now: float = 1000.0
    topics: list[Timed] = field(default_factory=list)

    def wait(self, seconds: float) -> None:
        self.now += max(seconds, 0.01)
        assert self.now < 10_000.0, "nothing is cut any more"
        for topic in self.topics:
            topic.grow()


@dataclass
class Timed:
    """A source in memory: each split has the times of its records. Live ones get more of them while time passes."""

    uri: str
    scripts: dict[str, Script]
    chunk: int = 3
    world: World | None = None
    there: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.world is not None:
            self.world.topics.append(self)
            self.there = dict.fromkeys(self.scripts, 0)

    @property
    def bounded(self) -> bool:
        return self.world is None

    def splits(self) -> list[str]:
        return list(self.scripts)

    def grow(self) -> None:
        assert self.world is not None
        for split in self.scripts:
            if self.world.random.random() < 0.5:
                self.there[split] = min(len(self.scripts[split]), self.there[split] + self.world.random.randrange(6))

    def open(self, split: str, position: int | None, until: int | None = None) -> ChunkedReader:
        return ChunkedReader(self.chunks(split, position or 0), position or 0, True, until)

    def chunks(self, split: str, at: int) -> Iterator[Any]:
        script = self.scripts[split]
        while self.world is not None or at < len(script):
            stop = min(len(script) if self.world is None else self.there[split], at + self.chunk)
            if stop == at:
                yield None
                continue
            good = np.array([i for i in range(at, stop) if script[i] is not BAD], np.int64)
            bad = tuple(BadRecord(self.uri, split, i, b"", "bad") for i in range(at, stop) if script[i] is BAD)
            times = np.array([script[i] for i in good], np.float64)
            records = Records(np.full(len(good), int(split)), good, np.ones(len(good), np.int8), times)
            yield Chunk(records, good, good + 1, bad, tuple(each.offset + 1 for each in bad), stop)
            at = stop

    def wait(self, seconds: float) -> None:
        assert self.world is not None
        self.world.wait(seconds)

    def close(self) -> None:
        pass


Place = tuple[str, str, int]


def places_of(sources: Sequence[Timed]) -> Iterator[tuple[Place, float]]:
    """Yield the good records in order, each with the greatest time up to it in its split."""
    for source in sources:
        for split, script in source.scripts.items():
            reached = -math.inf
            for offset, time in enumerate(script):
                if time is not BAD:
                    reached = max(reached, time)
                    yield (source.uri, split, offset), reached


def by_definition(sources: Sequence[Timed], seconds: float) -> list[list[Place]]:
    """Return the records of each interval that has any, by the greatest time up to each in its own split."""
    found: dict[int, list[Place]] = {}
    for place, reached in places_of(sources):
        found.setdefault(math.floor(reached / seconds), []).append(place)
    return [found[number] for number in sorted(found)]


def taken(batch: EpochBatch, sources: Sequence[Timed]) -> list[Place]:
    """Return the good records of an epoch, read off what it says it took; and check that it has just these."""
    scripts = {source.uri: source.scripts for source in sources}
    found = [
        (uri, split, offset)
        for uri, split, begin, end in batch.ranges
        for offset in range(begin, end)
        if scripts[uri][split][offset] is not BAD
    ]
    assert [(int(split), offset) for _, split, offset in found] == list(
        zip(batch.src.tolist(), batch.dst.tolist(), strict=True)
    )
    return found


def told(position: Any) -> Any:
    """Return a position as it comes back from a store."""
    return json.loads(json.dumps(position))


def shown(batch: EpochBatch) -> tuple[object, ...]:
    return batch.ranges, batch.watermark, batch.last, batch.end, len(batch.bad)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    """Draw the times of a split: it goes on at a speed of its own, with some disorder and bad records."""
    time = draw(st.sampled_from([0.0, 3.0, -40.0, 200.0]))
    speed = draw(st.sampled_from([0.0, 0.5, 1.0, 20.0]))
    disorder = draw(st.sampled_from([0.0, 0.0, 2.0, 30.0]))
    script: Script = []
    for step in draw(st.lists(st.integers(-2, 9), max_size=20)):
        time += max(step, 0) * speed
        script.append(BAD if step == -2 else time - (disorder if step == -1 else 0.0))
    return script


layouts = st.lists(st.lists(scripts(), min_size=1, max_size=3), min_size=1, max_size=3)
lengths = st.sampled_from([0.1, 1.0, 7.0, 50.0])


def sources_of(layout: list[list[Script]], world: World | None = None) -> list[Timed]:
    return [
        Timed(f"source {number}", {str(split): script for split, script in enumerate(each)}, world=world)
        for number, each in enumerate(layout)
    ]


def read_all(sources: Sequence[Timed], fresh: Sequence[bool], *options: Any, **more: Any) -> list[EpochBatch]:
    """Read all epochs; where it is ``fresh``, with a reader that knows nothing but where the last one stopped."""
    kept = EpochReader(sources, *options, **more)
    batches = [kept.read(kept.start())]
    while not batches[-1].last:
        # Where chunks are cut may differ between readers, and must not matter.
        for source in sources:
            source.chunk = source.chunk % 7 + 1
        reader = EpochReader(sources, *options, **more) if fresh[len(batches) % len(fresh)] else kept
        batches.append(reader.read(told(batches[-1].end)))
    return batches


@settings(max_examples=300, deadline=None)
@given(layout=layouts, seconds=lengths, block=st.integers(1, 6), fresh=st.lists(st.booleans(), min_size=1))
def test_an_interval_is_an_epoch_whatever_the_speed_of_each_source(layout, seconds, block, fresh):
    check_bounded(sources_of(layout), seconds, 10**6, block, fresh)


@settings(max_examples=300, deadline=None)
@given(
    layout=layouts,
    seconds=lengths,
    epoch_edges=st.integers(1, 12),
    block=st.integers(1, 6),
    fresh=st.lists(st.booleans(), min_size=1),
)
def test_full_epochs_divide_an_interval_the_same_wherever_a_run_is_resumed(layout, seconds, epoch_edges, block, fresh):
    check_bounded(sources_of(layout), seconds, epoch_edges, block, fresh)


def check_bounded(sources: Sequence[Timed], seconds: float, epoch_edges: int, block: int, fresh: list[bool]) -> None:
    """Check epochs of bounded sources against the definition, and that they are a function of these alone."""
    batches = read_all(sources, fresh, epoch_edges, block, event_seconds=seconds)
    undisturbed = read_all(sources, [False], epoch_edges, block, event_seconds=seconds)
    assert [shown(batch) for batch in batches] == [shown(batch) for batch in undisturbed]
    wanted = by_definition(sources, seconds)
    assert sum(len(batch.bad) for batch in batches) == sum(
        script.count(BAD) for source in sources for script in source.scripts.values()
    )
    epochs = [found for batch in batches if (found := taken(batch, sources))]
    # Those of one interval follow each other, and together they are the interval.
    for interval in wanted:
        together: list[Place] = []
        while len(together) < len(interval):
            assert len(epochs[0]) == min(epoch_edges, len(interval) - len(together))
            together += epochs.pop(0)
        assert sorted(together) == sorted(interval)
    assert not epochs
    check_watermarks(batches, sources)


def check_watermarks(batches: Sequence[EpochBatch], sources: Sequence[Timed]) -> None:
    """Check that no record comes after the watermark has passed what its own split has reached with it."""
    reached = dict(places_of(sources))
    watermark = -math.inf
    for batch in batches:
        for place in taken(batch, sources):
            assert watermark <= reached[place], (place, watermark)
        watermark = max(watermark, -math.inf if batch.watermark is None else batch.watermark)


@settings(max_examples=300, deadline=None)
@given(
    layout=layouts,
    bounded=st.integers(0, 2),
    seconds=lengths,
    epoch_edges=st.sampled_from([3, 10**6]),
    fresh=st.lists(st.booleans(), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_live_sources_count_each_record_once_and_hold_each_other_back(
    layout, bounded, seconds, epoch_edges, fresh, seed
):
    world, bounded = World(random.Random(seed)), min(bounded, len(layout))
    # Each live split ends in a time beyond all others, which shows that all before it has come.
    layout = [
        each if number < bounded else [[*script, 1e6] for script in each] for number, each in enumerate(layout)
    ] + [[[1e6]]]
    sources = sources_of(layout[:bounded]) + sources_of(layout[bounded:], world)
    for number, source in enumerate(sources):
        source.uri = f"source {number}"
    check_live(world, sources, seconds, epoch_edges, fresh)


def check_live(world: World, sources: Sequence[Timed], seconds: float, epoch_edges: int, fresh: list[bool]) -> None:
    def opened() -> EpochReader:
        return EpochReader(sources, epoch_edges, 4, None, lambda: world.now, seconds, idle_seconds=1e9)

    before_the_end = [place for place, reached in places_of(sources) if reached < 1e6]
    kept = opened()
    batches: list[EpochBatch] = []
    position, found = kept.start(), set()
    while not found >= set(before_the_end):
        reader = opened() if fresh[len(batches) % len(fresh)] else kept
        batches.append(reader.read(told(position)))
        assert not batches[-1].last
        assert len(batches[-1].src) + len(batches[-1].bad) > 0
        new = taken(batches[-1], sources)
        assert not found & set(new)
        found |= set(new)
        again = opened().reread(told(batches[-1].ranges))
        assert again.dst.tolist() == batches[-1].dst.tolist()
        position = batches[-1].end
        world.wait(world.random.choice([0.0, 3.0]))
    epochs = [each for batch in batches if (each := taken(batch, sources))]
    # However they have come, and were looked for: the intervals are those of the definition.
    for interval in by_definition(sources, seconds):
        together: list[Place] = []
        while len(together) < len(interval) and epochs:
            together += epochs.pop(0)
        assert sorted(together) == sorted(interval) or not epochs
    check_watermarks(batches, sources)


# --- silence ------------------------------------------------------------------------------------------------


def test_a_silent_source_is_waited_for_and_then_not_any_more():
    world = World(random.Random(1))
    silent = Timed("silent", {"0": [3.0, 25.0]}, world=world)
    silent.grow = lambda: None
    fast = Timed("fast", {"0": [1.0, 11.0, 12.0, 21.0, 31.0]})
    reader = EpochReader([fast, silent], 100, 10, None, lambda: world.now, 10.0, idle_seconds=5.0)
    first = reader.read(reader.start())
    assert (taken(first, [fast, silent]), first.watermark) == ([("fast", "0", 0)], 10.0)
    assert world.now == pytest.approx(1005.0, abs=0.3)
    second = reader.read(first.end)
    assert (taken(second, [fast, silent]), second.watermark) == ([("fast", "0", 1), ("fast", "0", 2)], 20.0)
    assert world.now == pytest.approx(1005.0, abs=0.3)  # still silent: nobody waits again
    # It speaks: its old record counts in the interval that is open, which then waits for it.
    silent.there["0"] = 1
    silent.grow = lambda: silent.there.update({"0": 2}) if world.now > 1007.0 else None
    third = reader.read(second.end)
    assert taken(third, [fast, silent]) == [("fast", "0", 3), ("silent", "0", 0), ("silent", "0", 1)]
    assert third.watermark == 30.0
    assert world.now > 1007.0


def test_where_all_are_silent_what_has_come_is_an_epoch():
    world = World(random.Random(1))
    topic = Timed("topic", {"0": [1.0, 2.0, 3.0], "1": [7.0, 8.0]}, world=world)
    topic.grow = lambda: None
    topic.there = {"0": 2, "1": 1}
    reader = EpochReader([topic], 100, 10, None, lambda: world.now, 10.0, idle_seconds=5.0)
    first = reader.read(reader.start())
    assert (len(first.src), first.watermark) == (3, 0.0)
    topic.grow = lambda: topic.there.update({"0": 3, "1": 2}) if world.now > 1020.0 else None
    second = reader.read(first.end)  # nothing comes, and nothing is cut, until something does
    assert (len(second.src), second.watermark) == (2, 0.0)
    assert world.now > 1025.0


def test_listening_counts_and_not_the_time_between_two_epochs():
    world = World(random.Random(1))
    slow = Timed("slow", {"0": [1.0, 11.0, 21.0]}, world=world)
    slow.grow = lambda: slow.there.update({"0": min(3, int((world.now - 1000) // 4))})
    fast = Timed("fast", {"0": [1.0, 11.0, 21.0, 31.0]})
    sources = [fast, slow]
    reader = EpochReader(sources, 100, 10, None, lambda: world.now, 10.0, idle_seconds=5.0)
    batch, found = reader.read(reader.start()), []
    for _ in range(2):
        found.append(taken(batch, sources))
        world.now += 1000.0  # the computation takes its time
        slow.there = dict(slow.there)
        slow.grow()
        batch = reader.read(batch.end)
    assert found == [[("fast", "0", 0), ("slow", "0", 0)], [("fast", "0", 1), ("slow", "0", 1)]]


def test_a_fast_source_is_not_read_ahead(tmp_path):
    world = World(random.Random(1))
    slow = Timed("slow", {"0": [float(i) for i in range(20)]}, world=world)
    slow.grow = lambda: slow.there.update({"0": min(20, int(world.now - 1000))})
    read = []

    class Watched(Timed):
        def chunks(self, split: str, at: int) -> Iterator[Any]:
            for chunk in super().chunks(split, at):
                read.append(chunk.ends[-1])
                yield chunk

    fast = Watched("fast", {"0": [float(i) / 100 for i in range(100_000)]}, chunk=50)
    reader = EpochReader([fast, slow], 10**6, 1000, None, lambda: world.now, 1.0, idle_seconds=1e9)
    batch = reader.read(reader.start())
    for second in range(1, 15):
        assert sum(batch.src == 0) == 101
        assert read[-1] <= 100 * second + 50
        batch = reader.read(batch.end)


# --- since when records could be read ------------------------------------------------------------------------


def test_a_record_could_be_read_since_nothing_was_left_at_the_latest():
    world = World(random.Random(1))
    topic = Timed("topic", {"0": [1.0] * 9}, world=world)
    topic.grow = lambda: topic.there.update({"0": min(9, int((world.now - 1000) / 10))})
    reader = EpochReader([topic], 2, clock=lambda: world.now)
    first = reader.read(reader.start())
    # The second came at 1020, when nothing had been left a moment ago; the first at 1010.
    assert first.since == pytest.approx(1010.0, abs=0.3)
    world.wait(25.0)
    second = reader.read(first.end)  # they have come meanwhile; nobody knows when
    assert second.since == pytest.approx(1020.0, abs=0.3)
    assert world.now == pytest.approx(1045.0, abs=0.3)


def test_what_is_held_can_be_read_all_the_while():
    world = World(random.Random(1))
    slow = Timed("slow", {"0": [2.0, 12.0, 22.0]}, world=world)
    slow.grow = lambda: slow.there.update({"0": min(3, int((world.now - 1000) / 10))})
    fast = Timed("fast", {"0": [1.0, 11.0, 21.0]})
    reader = EpochReader([fast, slow], 100, 10, None, lambda: world.now, 10.0, idle_seconds=1e9)
    first = reader.read(reader.start())
    second = reader.read(first.end)
    assert [len(batch.src) for batch in (first, second)] == [2, 2]
    assert (first.since, second.since) == (1000.0, 1000.0)
    assert world.now == pytest.approx(1030.0, abs=0.3)


# --- what there is beside -----------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1e300, -1e300, GREATEST_SECONDS, 1e12, -1e12, sys.float_info.max])
def test_times_beyond_all_reason_are_cut_too(time):
    sources = [Timed("a", {"0": [5.0, time, 6.0, time]}), Timed("b", {"1": [time, 5.0]})]
    for epoch_edges in (1, 100):
        batches = read_all(sources, [True], epoch_edges, 2, event_seconds=0.01)
        assert sum(len(batch.src) for batch in batches) == 6


@given(time=st.floats(allow_nan=False, allow_infinity=False) | st.floats(0, 1e10), seconds=st.floats(0.01, 1e12))
def test_a_time_lies_in_its_interval(time, seconds):
    found = Intervals(seconds)
    number = found.number_of(time)
    assert time < found.end_of(number)
    if time >= -GREATEST_SECONDS:
        assert found.begin_of(number) <= time


def test_records_without_a_time_cannot_be_cut_by_it(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("1 2\n")
    with pytest.raises(SourceError, match="records without a time, by which epochs are cut"):
        read_all([open_source(str(path))], [False], 10, event_seconds=1.0)


def test_files_are_cut_as_they_are_read_again(tmp_path):
    for name, first, step in (("a.csv", 0, 1), ("b.csv.gz", 500, 3), ("c.parquet", 100, 7)):
        write_timed(tmp_path / name, [float(first + i * step) for i in range(3000)])
    source = open_source(str(tmp_path), "src,dst,time")
    batches = read_all_files(source, seconds=1000.0)
    times = [batch.time for batch in batches]
    assert [math.floor(each.min() / 1000) for each in times] == [math.floor(each.max() / 1000) for each in times]
    assert [math.floor(each.min() / 1000) for each in times] == list(range(22))
    assert sum(map(len, times)) == 9000
    for batch in batches:
        assert EpochReader([source], 10).reread(told(batch.ranges)).time.tolist() == batch.time.tolist()


def test_a_watched_folder_is_one_split_whichever_of_its_files_is_read(tmp_path):
    folder, now = tmp_path / "in", [1000.0]
    folder.mkdir()
    write_timed(folder / "a.csv", [1.0, 2.0, 11.0])
    write_timed(folder / "b.csv", [3.0, 12.0, 25.0])  # 3 comes late, with what is read then
    write_timed(tmp_path / "beside.csv", [4.0, 14.0, 24.0, 31.0])

    def opened() -> EpochReader:
        sources = [open_source(uri, "src,dst,time") for uri in (f"watch://{folder}", str(tmp_path / "beside.csv"))]
        for source in sources[:1]:
            source.wait = lambda seconds: now.__setitem__(0, now[0] + 0.1)
        return EpochReader(sources, 100, 10, None, lambda: now[0], 10.0, idle_seconds=5.0)

    reader = opened()
    batches = [reader.read(reader.start())]
    batches += [reader.read(told(batches[-1].end))]
    assert [batch.time.tolist() for batch in batches] == [[1.0, 2.0, 4.0], [11.0, 3.0, 12.0, 14.0]]
    assert now == [1000.0]
    # Nothing follows in the folder: it is waited for, once, however many files it had.
    batches += [reader.read(told(batches[-1].end))]
    batches += [reader.read(told(batches[-1].end))]
    assert [batch.time.tolist() for batch in batches[2:]] == [[25.0, 24.0], [31.0]]
    assert now[0] == pytest.approx(1005.0, abs=0.3)
    assert [batch.watermark for batch in batches] == [10.0, 20.0, 30.0, 30.0]
    for batch in batches:
        assert opened().reread(told(batch.ranges)).time.tolist() == batch.time.tolist()


def write_timed(path: Any, times: list[float]) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        ids = list(range(len(times)))
        pq.write_table(pa.table({"src": ids, "dst": ids, "time": times}), path)
        return
    text = "".join(f"{i},{i + 1},{time}\n" for i, time in enumerate(times)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def read_all_files(source: Any, seconds: float) -> list[EpochBatch]:
    reader = EpochReader([source], 10**6, event_seconds=seconds)
    batches = [reader.read(reader.start())]
    while not batches[-1].last:
        reader = EpochReader([source], 10**6, event_seconds=seconds) if len(batches) % 3 else reader
        batches.append(reader.read(told(batches[-1].end)))
    return batches


# --- the tests can fail -------------------------------------------------------------------------------------


def first_one_decides(self: Intervals, number: int | None, splits: Any) -> bool:
    return any(self.is_held(split, number) for split in splits.values())


def furthest_one_decides(self: Intervals, number: int | None, splits: Any) -> int:
    return max(self.number_of(split.reached) for split in splits if self.is_held(split, number))


def too_late(self: Intervals, number: int) -> float:
    return (number + 1) * self._seconds


@pytest.mark.parametrize(
    ("name", "wrong"), [("is_over", first_one_decides), ("after", furthest_one_decides), ("begin_of", too_late)]
)
def test_a_wrong_rule_is_found(name, wrong):
    layout: list[list[Script]] = [[[1.0, 12.0, 13.0, 35.0]], [[2.0, 3.0, 4.0, 14.0, 15.0, 31.0], [11.0, 12.0]]]

    def check() -> None:
        check_bounded(sources_of(layout), 10.0, 10**6, 2, [True, False])
        check_bounded(sources_of(layout), 10.0, 3, 2, [True, False])
        for seed in range(5):
            world = World(random.Random(seed))
            sources = sources_of([[[*script, 1e6] for script in each] for each in layout], world)
            check_live(world, sources, 10.0, 100, [True])

    check()
    with patch.object(Intervals, name, wrong), pytest.raises(AssertionError):
        check()
