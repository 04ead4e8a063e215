"""Epochs against a naive round-robin: the sequence of records, its cuts, and that nothing else counts."""

import json
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.epochs import EpochReader
from ingest.reader import Chunk, ChunkedReader
from ingest.source import BadRecord, Records


@dataclass
class ScriptedSource:
    """A source in memory: each split is a string, a letter for a good record and a dot for a bad one."""

    uri: str
    scripts: dict[str, str]
    bounded: bool = True
    opened: int = 0

    def splits(self) -> list[str]:
        return sorted(self.scripts)

    def open(self, split: str, position: int | None, until: int | None = None) -> ChunkedReader:
        self.opened += 1
        return ChunkedReader(self.chunks(split, position or 0), position or 0, timed=True, until=until)

    def close(self) -> None:
        pass

    def chunks(self, split: str, position: int):
        script = self.scripts[split]
        for start in range(position, len(script), 7):
            run = range(start, min(start + 7, len(script)))
            good = np.array([i for i in run if script[i] != "."], np.int64)
            bad = tuple(BadRecord(self.uri, split, i, b".", "is a dot") for i in run if script[i] == ".")
            letters = np.array([ord(script[i]) for i in good], np.int64)
            records = Records(letters, good, np.ones(len(good), np.int8), good.astype(float))
            yield Chunk(records, good, good + 1, bad, tuple(record.offset + 1 for record in bad))


def naive_sequence(sources: list[ScriptedSource], block_records: int) -> list[tuple[int, str, int]]:
    """Return (source, split, offset) of the good records, in the order they are taken."""
    queues = [
        [(number, split, offset) for offset, letter in enumerate(source.scripts[split]) if letter != "."]
        for number, source in enumerate(sources)
        for split in source.splits()
    ]
    sequence = []
    while any(queues):
        for queue in queues:
            sequence += queue[:block_records]
            del queue[:block_records]
    return sequence


script = st.one_of(st.sampled_from(["", "a", ".", "ab"]), st.text("abc...", max_size=25))
scripts = st.dictionaries(st.sampled_from("pqrs"), script, max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    layout=st.lists(scripts, min_size=1, max_size=3),
    epoch_edges=st.integers(1, 30),
    block_records=st.integers(1, 6),
    fresh=st.lists(st.booleans(), min_size=1),
)
def test_epochs_are_cuts_of_one_sequence(layout, epoch_edges, block_records, fresh):
    sources = [ScriptedSource(f"source {number}", scripts) for number, scripts in enumerate(layout)]
    sequence = naive_sequence(sources, block_records)
    uris = [source.uri for source in sources]
    all_bad = [
        (source.uri, split, offset)
        for source in sources
        for split in source.splits()
        for offset, letter in enumerate(source.scripts[split])
        if letter == "."
    ]
    kept = EpochReader(sources, epoch_edges, block_records)
    position = kept.start()
    n_good = step = 0
    bad = []
    while True:
        epochs = EpochReader(sources, epoch_edges, block_records) if fresh[step % len(fresh)] else kept
        step += 1
        batch = epochs.read(json.loads(json.dumps(position)))

        expected = sorted(sequence[n_good : n_good + epoch_edges])
        n_good += len(expected)
        assert batch.dst.tolist() == [offset for _, _, offset in expected]
        assert batch.src.tolist() == [ord(sources[source].scripts[split][offset]) for source, split, offset in expected]
        assert batch.op.tolist() == [1] * len(expected)
        assert batch.time is None or batch.time.tolist() == batch.dst.tolist()
        places = [(record.source, record.split, record.offset) for record in batch.bad]
        assert places == sorted(places, key=lambda place: (uris.index(place[0]), place[1], place[2]))
        bad += places
        assert batch.begin == position
        again = EpochReader(sources, epoch_edges, block_records).reread(json.loads(json.dumps(batch.ranges)))
        assert again.dst.tolist() == batch.dst.tolist()
        assert again.src.tolist() == batch.src.tolist()
        position = batch.end
        assert batch.last == (n_good == len(sequence) and sorted(bad) == sorted(all_bad))
        if batch.last:
            break
        assert len(expected) == epoch_edges
        if epochs is not kept:
            epochs.close()
    after = kept.read(position)
    assert (len(after.src), after.bad, after.last, after.end) == (0, [], True, position)
    kept.close()


@settings(max_examples=100, deadline=None)
@given(layout=st.lists(scripts, min_size=1, max_size=3), epoch_edges=st.integers(1, 30))
def test_reading_on_opens_every_split_once(layout, epoch_edges):
    """Longer than a block each: where all that were read have ended, the others are looked into."""
    sources = [
        ScriptedSource(f"source {number}", {split: f"abcd{script}" for split, script in scripts.items()})
        for number, scripts in enumerate(layout)
    ]
    epochs = EpochReader(sources, epoch_edges, 3)
    batch = epochs.read(epochs.start())
    while not batch.last:
        batch = epochs.read(batch.end)
    assert [source.opened for source in sources] == [len(source.scripts) for source in sources]
