"""Files that arrive, and a reader of them that can be begun anew."""

from __future__ import annotations

import json
from pathlib import Path

from ingest import EpochBatch, EpochReader, Position, open_source
from ingest.source import JsonValue
from ingest.watch import WatchSource


class Clock:
    """Seconds that go on when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(first: int, count: int) -> bytes:
    return b"".join(b"%d %d\n" % (each, -each) for each in range(first, first + count))


def arrive(folder: Path, name: str, data: bytes) -> None:
    """Move a whole file in."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(data)
    hidden.rename(path)


class Run:
    """A reader of one folder that may be begun anew, as after a crash, from what it would have made durable."""

    def __init__(self, folder: Path, parameters: str = "patience=0", **options: str) -> None:
        self.uri = f"watch://{folder}?{parameters}"
        self.options = options
        self.told: list[str] = []
        self.clock = Clock()
        self.settled: JsonValue = None
        self.position: Position | None = None
        self.rows = b""
        self.batches: list[EpochBatch] = []
        self.begin()

    def begin(self) -> None:
        """Start a process: all it has is the position and the rows."""
        self.source = WatchSource(
            self.uri, ("src", "dst"), self.settled, tell=self.told.append, clock=self.clock, **self.options
        )
        self.settled = self.settled or json.loads(json.dumps(self.source.settle()))
        self.source.register.load(self.rows)

    def read(self, epoch_edges: int) -> list[int]:
        """Read an epoch of so many records, each time with a new reader; return the followers."""
        self.clock.now += 100.0  # it is time to look again
        with EpochReader([self.source], epoch_edges, block_records=7) as reader:
            position = reader.start() if self.position is None else self.position
            batch = reader.read(json.loads(json.dumps(position)))
        self.position = batch.end
        self.rows = self.source.register.rows(0, self.source.register.committed)
        self.batches.append(batch)
        return batch.src.tolist()

    def again(self) -> list[list[int]]:
        """Read all epochs again, by what was recorded of them."""
        with EpochReader([open_source(self.uri, **self.options)], 1000) as reader:
            return [reader.reread(json.loads(json.dumps(batch.ranges))).src.tolist() for batch in self.batches]

    def files(self) -> list[str]:
        """Return the files in the order in which they were read."""
        visits = [each[1] for batch in self.batches for each in batch.ranges]
        return [name for at, name in enumerate(visits) if at == 0 or visits[at - 1] != name]
