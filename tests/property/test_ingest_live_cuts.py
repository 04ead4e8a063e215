"""Epochs over live splits: whenever records come, each counts once, in order, and an epoch can be read again."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import EpochReader, SourceError, open_source
from ingest.reader import Chunk, ChunkedReader
from ingest.source import BadRecord, Records


class World:
    """A clock, and what happens while a reader waits."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.sources: list[Topic] = []

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for source in self.sources:
            source.grow()


class Topic:
    """A live source: letters arrive in its splits while time passes; a dot is bad, a blank is a gap."""

    bounded = False

    def __init__(self, uri: str, scripts: dict[str, str], world: World) -> None:
        self.uri = uri
        self.scripts = scripts
        self.there = dict.fromkeys(scripts, 0)
        self.late = {split for split in scripts if world.random.random() < 0.3}
        self.world = world
        world.sources.append(self)

    def splits(self) -> list[str]:
        return [split for split in self.scripts if split not in self.late]

    def grow(self) -> None:
        for split, script in self.scripts.items():
            if self.world.random.random() < 0.5:
                self.late.discard(split)
                self.there[split] = min(len(script), self.there[split] + self.world.random.randrange(9))

    def drained(self) -> bool:
        return all(self.there[split] == len(script) for split, script in self.scripts.items())

    def open(self, split: str, position: int | None, until: int | None = None) -> ChunkedReader:
        return ChunkedReader(self.chunks(split, position or 0, until), position or 0, True, until)

    def wait(self, seconds: float) -> None:
        self.world.pass_time(max(seconds, 0.01))

    def close(self) -> None:
        pass

    def chunks(self, split: str, at: int, until: int | None):
        while True:
            stop = min(self.there[split], at + 5)
            if stop == at:
                yield None
                continue
            run = [i for i in range(at, stop) if self.scripts[split][i] != " "]
            good = np.array([i for i in run if self.scripts[split][i] != "."], np.int64)
            bad = tuple(BadRecord(self.uri, split, i, b".", "is a dot") for i in run if self.scripts[split][i] == ".")
            letters = np.array([ord(self.scripts[split][i]) for i in good], np.int64)
            records = Records(letters, good, np.ones(len(good), np.int8), good.astype(float))
            yield Chunk(records, good, good + 1, bad, tuple(each.offset + 1 for each in bad), stop)
            at = stop


def ends(position, sources):
    """Whether everything was read."""
    at = {(split["source"], split["split"]): split["position"] or 0 for split in position["splits"]}
    return all(
        at.get((source.uri, split), 0) >= len(script.rstrip(" "))
        for source in sources
        for split, script in source.scripts.items()
    )


scripts = st.dictionaries(st.sampled_from("pqrs"), st.text("abc.. ", max_size=30), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(
    layout=st.lists(scripts, min_size=1, max_size=3),
    epoch_edges=st.integers(1, 30),
    epoch_seconds=st.sampled_from([None, 0.5, 1.0, 7.0]),
    block_records=st.integers(1, 6),
    fresh=st.lists(st.booleans(), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_every_record_counts_once_however_it_comes(layout, epoch_edges, epoch_seconds, block_records, fresh, seed):
    world = World(seed)
    # A letter for each split at its end, so that every split has a last record that must come.
    sources = [
        Topic(f"topic {n}", {split: f"{script}z" for split, script in sorted(scripts.items())}, world)
        for n, scripts in enumerate(layout)
    ]
    wanted = [
        (number, split, offset)
        for number, source in enumerate(sources)
        for split, script in source.scripts.items()
        for offset, letter in enumerate(script)
        if letter not in ". "
    ]
    if epoch_seconds is None and len(wanted) % epoch_edges:
        epoch_edges = 1  # cut by count alone, the rest would wait for more

    def open_epochs():
        return EpochReader(sources, epoch_edges, block_records, epoch_seconds, lambda: world.now)

    kept = open_epochs()
    position, found, n_bad = kept.start(), [], 0
    for step in range(10_000):
        if ends(position, sources):
            break
        epochs = open_epochs() if fresh[step % len(fresh)] else kept
        batch = epochs.read(json.loads(json.dumps(position)))
        assert not batch.last
        assert len(batch.src) + len(batch.bad) > 0
        assert len(batch.src) <= epoch_edges
        if batch.due is None:
            assert len(batch.src) == epoch_edges
        else:
            assert batch.due % epoch_seconds == 0
            assert batch.due <= world.now
        again = open_epochs().reread(json.loads(json.dumps(batch.ranges)))
        assert again.src.tolist() == batch.src.tolist()
        assert again.dst.tolist() == batch.dst.tolist()
        taken = []
        for uri, split, begin, end in batch.ranges:
            number = int(uri.split()[1])
            taken += [place for place in wanted if place[:2] == (number, split) and begin <= place[2] < end]
        assert [offset for _, _, offset in taken] == batch.dst.tolist()
        found += taken
        n_bad += len(batch.bad)
        position = batch.end
        world.pass_time(world.random.choice([0.0, 0.1, 3.0]))
    assert sorted(found) == sorted(wanted)
    everything = [script for source in sources for script in source.scripts.values()]
    assert n_bad == sum(script.count(".") for script in everything)


def test_an_idle_split_does_not_stall_the_others(tmp_path):
    world = World(1)
    idle = Topic("idle", {"0": ""}, world)
    idle.late = set()
    path = tmp_path / "edges.txt"
    path.write_text("".join(f"{i} {-i}\n" for i in range(2500)))
    # Records with and without a time do not mix.
    epochs = EpochReader([idle, open_source(str(path))], 1000)
    first = epochs.read(epochs.start())
    second = epochs.read(first.end)
    assert [len(batch.src) for batch in (first, second)] == [1000, 1000]
    assert first.ranges == [[str(path), "edges.txt", 0, first.ranges[0][3]]]
    assert world.now == 1000.0


def test_nothing_comes_and_nothing_is_cut_until_something_does():
    world = World(1)
    topic = Topic("topic", {"0": "abc"}, world)
    topic.late, topic.grow = set(), lambda: topic.there.update({"0": 3}) if world.now > 1033.3 else None
    batch = EpochReader([topic], 100, epoch_seconds=5.0, clock=lambda: world.now).read(EpochReader([topic], 1).start())
    assert (len(batch.src), batch.due) == (3, 1035.0)


def test_a_late_epoch_takes_all_that_came_and_shows_when_it_was_due():
    world = World(1)
    topic = Topic("topic", {"0": "a" * 20}, world)
    topic.late, topic.grow = set(), lambda: topic.there.update({"0": int(min(20, round(world.now - 1000, 3)))})
    epochs = EpochReader([topic], 100, epoch_seconds=5.0, clock=lambda: world.now)
    first = epochs.read(epochs.start())
    assert (len(first.src), first.due) == (4, 1005.0)
    world.pass_time(12.0)  # the computation is slow
    late = epochs.read(first.end)
    assert (len(late.src), late.due) == (int(round(world.now - 1000, 3)) - 4, 1010.0)
    third = epochs.read(late.end)
    assert third.due == 1020.0


def test_a_split_that_is_gone_is_told():
    world = World(1)
    topic = Topic("topic", {"0": "abc", "1": "abc"}, world)
    topic.late = set()
    epochs = EpochReader([topic], 10)
    position = epochs.start()
    del topic.scripts["1"]
    with pytest.raises(SourceError, match="'1' is new, gone"):
        epochs.read(position)


def test_a_range_that_is_not_there_any_more_is_told(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("1 2\n3 4\n")
    epochs = EpochReader([open_source(str(path))], 10)
    batch = epochs.read(epochs.start())
    path.write_text("1 2\n")
    with pytest.raises(SourceError, match="was read up to 8 before, and now ends at 4"):
        epochs.reread(batch.ranges)
