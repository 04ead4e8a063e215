"""A topic that is fed faster than a run can go, for long: the run's memory does not follow the topic."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from graph_stream import runs
from ingest import EpochReader, open_source
from ingest.kafka_uri import CLIENTS
from tests.fault.command import Command
from tests.fault.crashes import published
from tests.fault.test_soak import EPOCH_EDGES, SETTLED_SECONDS, Sample, assert_flat, memory_mib
from tests.integration.services import Kafka, KafkaServer, use_client

SPLITS = 3
LEAD = 1_000_000
"""Messages that wait in the topic before the run begins, and that the feeder stays ahead of it."""


class Feeder:
    """Keeps a topic ahead of whoever reads it."""

    def __init__(self, kafka: Kafka, topic: str, seed: int) -> None:
        # Few vertices, and nearly as many deletes as inserts: the graph itself soon stops growing.
        source = open_source(f"rmat://?scale=9&edges=200000&seed={seed}&deletes=0.45")
        with EpochReader([source], 200_000) as epochs:
            batch = epochs.read(epochs.start())
        rows = zip(batch.src.tolist(), batch.dst.tolist(), batch.op.tolist(), strict=True)
        self._lines = [b"%d %d %s" % (src, dst, b"+" if op > 0 else b"-") for src, dst, op in rows]
        self._kafka, self._topic = kafka, topic
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed)
        self.fed = 0
        self.read = 0

    def __enter__(self) -> Feeder:
        """Begin, and return once the topic is ahead."""
        self._thread.start()
        while self.fed < LEAD:
            assert self._thread.is_alive()
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _feed(self) -> None:
        with self._kafka.producer(linger_ms=20, batch_size=256 * 1024) as producer:
            while not self._over.is_set():
                for number, line in enumerate(self._lines):
                    producer.send(self._topic, line, partition=number % SPLITS)
                self.fed += len(self._lines)
                while self.fed - self.read > 2 * LEAD and not self._over.wait(0.1):
                    pass


def overload(folder: Path, seconds: float) -> list[Sample]:
    """Run on a topic that stays ahead; return what the run held in memory, second by second."""
    samples = []
    with KafkaServer(folder / "kafka") as server:
        topic = server.kafka.new_topic(SPLITS)
        options = [
            *("--run-id", "r", "--store", folder / "store", "--columns", "src,dst,op", "--epoch-edges", EPOCH_EDGES),
            *("--source", f"kafka://{server.kafka.address}/{topic}"),
        ]
        with Feeder(server.kafka, topic, seed=1) as feeder, Command("run", *options, terminal=True) as command:
            command.until(lambda: published(command) > 0)
            began = time.monotonic()
            while (now := time.monotonic() - began) < seconds:
                assert command.process.poll() is None, command.told[-2000:]
                feeder.read = published(command) * EPOCH_EDGES
                assert feeder.fed > feeder.read, "the run keeps up, so it is not overloaded"
                samples.append(Sample(now, now > SETTLED_SECONDS, memory_mib(command)))
                time.sleep(1.0)
            command.interrupt(group=False)
            assert command.end().code == 130
    rows = [entry["row"] for entry in runs.open_run("r", str(folder / "store")).entries]
    assert rows[-1]["total_records"] == sum(end - begin for row in rows for begin, end in row["offsets"].values())
    report = " ".join(f"{each.seconds:.0f}:{each.mib:.0f}" for each in samples[::10])
    print(f"{rows[-1]['total_records'] / seconds:,.0f} records/s of {feeder.fed:,}; MiB by second: {report}")
    return samples


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("client", CLIENTS)
def test_memory_stays_flat_under_overload(client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_client(client, monkeypatch)
    assert_flat(overload(tmp_path, 900.0))
