"""A topic read, and one written, through SIGKILL of the run and of the broker at random moments, all in one run.

Three partitions with duplicates, deletes, poison and late records; edges expire; each epoch is published to a topic
of the same broker and as Parquet. What comes out is what a run makes of the same records in files that nothing
happens to: epoch by epoch the same state, and the same rows in both sinks, each epoch once; every offset counts once.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from graph_stream import runs
from graph_stream.parquet_sink import file_name
from ingest.kafka_uri import CLIENTS
from tests.fault.command import Command, graph_stream
from tests.fault.crashes import published
from tests.integration.services import KafkaServer, use_client
from tests.integration.test_kafka_runs import (
    POISON,
    SPLITS,
    every_offset_once,
    fill,
    lines_of,
    poison_is_told_once,
    write,
)
from tests.integration.topic import Seen, epochs_once, merged

EPOCH_EDGES = 50
RATE = 500
OPTIONS = [
    *("--columns", "src,dst,op,time", "--epoch-edges", EPOCH_EDGES),
    *("--window", 400, "--allowed-lateness", 100, "--checkpoint", "async"),
]


def timed_lines(split: int, count: int, seed: int) -> list[bytes]:
    """Return edges with times that mostly go on, some of them too late to count."""
    drawn = random.Random(f"times {seed} {split}")
    lines = lines_of(split, count, seed)
    return [
        line if line in POISON else line + b" %d" % (number - (drawn.randrange(200) if drawn.random() < 0.2 else 0))
        for number, line in enumerate(lines, 1000)
    ]


@dataclasses.dataclass
class Trial:
    """One run, the broker that it reads from and publishes to, and what happens to both."""

    server: KafkaServer
    store: Path
    random: random.Random
    deeds: list[str] = dataclasses.field(default_factory=list)

    def live(self, *arguments: object, strikes: Sequence[str]) -> None:
        """Run a command through what happens to it, until that is its end."""
        # Every life reads with another client: positions mean the same to both.
        client = {"KAFKA_CLIENT": CLIENTS[len(self.deeds) % len(CLIENTS)]}
        with Command(*arguments, terminal=True, environment=client) as command:
            for strike in strikes:
                seen = published(command) + self.random.randint(1, 8)
                command.until(lambda seen=seen: published(command) >= seen)
                self.pause(EPOCH_EDGES / RATE)
                self.deeds.append(f"{strike} at epoch {published(command)}")
                if "broker" in strike:
                    self.server.kill()
                    self.pause(1.0)
                if "run" in strike:
                    command.kill()
                    command.until_nothing_is_left()
                if "broker" in strike:
                    self.server.start()

    def pause(self, most: float) -> None:
        """Let the next thing happen at any moment within some seconds."""
        time.sleep(self.random.uniform(0.0, most))


def live_through(folder: Path, seed: int, lives: Sequence[Sequence[str]], count: int) -> None:
    store = folder / "store"
    with KafkaServer(folder / "kafka") as server:
        source, sink = server.kafka.new_topic(SPLITS), server.kafka.new_topic(2)
        parts = [timed_lines(split, count + 100 * split, seed) for split in range(SPLITS)]
        fill(server.kafka, source, parts)
        files = write(folder / "files", source, parts)
        graph_stream(
            "run", "--run-id", "r", "--store", folder / "expected", "--source", files, *OPTIONS,
            "--publish", folder / "rows",
        ).checked()  # fmt: skip

        uri = f"kafka://{server.kafka.address}/{source}?until=end&group={source}"
        begin = [
            *("run", "--run-id", "r", "--store", store, "--source", uri, *OPTIONS, "--rate", RATE),
            *("--publish", f"kafka://{server.kafka.address}/{sink}", "--publish", folder / "out"),
        ]
        trial = Trial(server, store, random.Random(seed))
        again = ["resume", "--run-id", "r", "--store", store, "--json"]
        try:
            for number, strikes in enumerate(lives):
                trial.live(*(again if number else begin), strikes=strikes)
        finally:
            print(f"seed {seed}: {', '.join(trial.deeds)}")
        assert graph_stream(*again).checked().result["status"] == "SUCCESSFUL"
        seen = merged(server.kafka.address, sink)
        with server.kafka.admin() as admin:
            lag = {
                partition.partition: told.offset for partition, told in admin.list_group_offsets(source)[source].items()
            }

    found, expected = (runs.open_run("r", str(each)) for each in (store, folder / "expected"))
    rows = [entry["row"] for entry in found.entries]
    every_offset_once(rows, source, [len(lines) for lines in parts])
    assert lag == {split: len(lines) for split, lines in enumerate(parts)}
    poison_is_told_once(store, "r", source, parts)
    assert rows[-1]["total_records"] + rows[-1]["total_rejected"] == sum(map(len, parts))
    assert [row["state_hash"] for row in rows] == [entry["row"]["state_hash"] for entry in expected.entries]
    assert runs.scores(found, found.newest).equals(runs.scores(expected, expected.newest))
    published_once(seen, folder / "out", folder / "rows", len(rows))


def published_once(seen: list[Seen], out: Path, expected: Path, epochs: int) -> None:
    """Check that a topic and a folder hold the epochs that another run has published, each once and in order."""
    assert epochs_once(seen, epochs)
    assert sorted(path.name for path in out.glob("*.parquet")) == [file_name(each) for each in range(1, epochs + 1)]
    for epoch, each in enumerate(seen, 1):
        table = pq.read_table(expected / file_name(epoch))
        assert pq.read_table(out / file_name(epoch)).equals(table)
        assert {
            row["vertex"]: None if row["deleted"] else (row["influence"], row["error_bound"])
            for row in table.to_pylist()
        } == {
            vertex: None if row is None else (row["influence"], row["error_bound"]) for vertex, row in each.rows.items()
        }


@pytest.mark.timeout(300)
def test_run_and_broker_are_killed_and_nothing_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_client(CLIENTS[1], monkeypatch)
    live_through(tmp_path, 1, [["broker", "run"], ["run and broker"]], 1000)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2, 8))
def test_run_and_broker_are_killed_whenever(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_client(CLIENTS[seed % len(CLIENTS)], monkeypatch)
    drawn = random.Random(f"lives {seed}")
    lives = [
        [*(["broker"] * drawn.randrange(3)), drawn.choice(["run", "run and broker"])]
        for _ in range(drawn.randint(4, 6))
    ]
    live_through(tmp_path, seed, lives, 4000)
