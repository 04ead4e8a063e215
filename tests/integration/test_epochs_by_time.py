"""Epochs by event time and for a target of staleness, on a real Ray: exact through interruptions, free when idle."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import exoflow
from exoflow.executor import RayExecutor
from graph_stream import Pipeline, runs, sources
from graph_stream.config import RunConfig
from graph_stream.epoch import Summary, combine
from graph_stream.eventtime import NEVER, EventTimes, advanced, microseconds, raised
from graph_stream.graph import PartitionState
from graph_stream.pipeline import MAX_IN_FLIGHT, resume
from graph_stream.rounds import alone
from ingest import EpochReader
from tests.fault.command import graph_stream
from tests.integration.test_kafka_runs import every_offset_once
from tests.integration.test_pipeline import Interrupt, hashes, run_until

pytestmark = pytest.mark.usefixtures("ray_cluster")

BY_EVENT_TIME = {
    "columns": "src,dst,op,time",
    "epoch_event_seconds": 100.0,
    "epoch_edges": 10**6,
    "window": 400.0,
    "allowed_lateness": 10.0,
}


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def lines_of(seed: int, count: int, step: float) -> Iterator[str]:
    """Yield edges whose time goes on by so many seconds, some of them up to ten too early."""
    drawn = random.Random(seed)
    for number in range(count):
        op = "+" if drawn.random() < 0.8 else "-"
        yield f"{drawn.randrange(60)} {drawn.randrange(60)} {op} {number * step - drawn.choice((0, 0, 3, 10))}"


@pytest.fixture
def two_speeds(tmp_path: Path) -> list[str]:
    """Return two files over 2,000 seconds, one with ten times the records of the other."""
    paths = []
    for seed, (count, step) in enumerate(((10_000, 0.2), (1_000, 2.0))):
        paths.append(tmp_path / f"every-{step}.txt")
        paths[-1].write_text("".join(f"{line}\n" for line in lines_of(seed, count, step)))
    return [str(path) for path in paths]


def expected(config: RunConfig) -> list[Summary]:
    """Return what each epoch has to come to: computed in this process, by one partition and one thread."""
    (parameters,) = config.parameters()
    state, watermark, found = PartitionState(parameters), NEVER, []
    with EpochReader(sources.opened(config), config.epoch_edges, event_seconds=config.epoch_event_seconds) as reader:
        position, last = reader.start(), False
        while not last:
            batch = reader.read(position)
            assert batch.time is not None
            times = EventTimes(microseconds(batch.time), watermark)
            result = state.apply(state.epoch + 1, batch.src, batch.dst, batch.op, alone, times)
            found.append(combine([result], parameters))
            by_count = config.epoch_event_seconds is None
            watermark = advanced(watermark, batch.time) if by_count else raised(watermark, batch.watermark)
            position, last = batch.end, batch.last
    return found


@pytest.mark.parametrize(("mode", "before", "after"), [("async", 2, 1), ("none", 1, 1)])
def test_two_sources_of_different_speeds_are_cut_side_by_side(two_speeds, mode, before, after, store):
    pipeline = Pipeline(*two_speeds, checkpoint=mode, partitions=before, **BY_EVENT_TIME)
    run_until(pipeline, store, Interrupt(7))
    resume("r", store, partitions=after)
    assert hashes(store) == [summary.state_hash for summary in expected(pipeline.config)]
    rows = [entry["row"] for entry in runs.open_run("r", store).entries]
    first, *ends = [row["watermark"] for row in rows]
    assert first is None
    assert ends == [100.0 * (20 - number) for number in reversed(range(1, len(ends) + 1))]
    assert len(ends) >= 19
    assert rows[-1]["total_records"] == 11_000
    assert sum(row["late"] for row in rows) == 0
    assert sum(row["expired"] for row in rows) > 0
    # By the newest time of all, the slower file would be late through no fault of its own.
    by_count = dataclasses.replace(pipeline.config, epoch_event_seconds=None, epoch_edges=500)
    assert sum(summary.late for summary in expected(by_count)) > 0


def interrupted_after(pipeline: Pipeline, store: str, wait: Callable[[], None]) -> None:
    """Run, or resume, until ``wait`` returns, which it does beside the run."""

    def watch() -> None:
        try:
            wait()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(run_id="r", store=store)
    watcher.join()


def rows_of(store: str) -> list[dict[str, Any]]:
    try:
        return [entry["row"] for entry in runs.open_run("r", store).entries]
    except exoflow.WorkflowNotFound:  # it is not there yet
        return []


def until(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_partitions_of_different_speeds_one_of_them_silent(kafka, store):
    topic = kafka.new_topic(3)
    parts = [list(lines_of(seed, count, step)) for seed, (count, step) in enumerate(((2_000, 0.5), (500, 2.0)))]
    with kafka.producer() as producer:
        # Ten times as fast: the first is there whole before the second begins.
        for partition, lines in enumerate(parts):
            for line in lines:
                producer.send(topic, line.encode(), partition=partition)
    options = {**BY_EVENT_TIME, "window": None, "idle_seconds": 3.0}
    pipeline = Pipeline(f"kafka://{kafka.address}/{topic}", **options)
    counts = [2_000, 500, 0]
    interrupted_after(pipeline, store, lambda: until(lambda: len(rows_of(store)) >= 3))
    before = rows_of(store)
    interrupted_after(
        pipeline, store, lambda: until(lambda: bool(found := rows_of(store)) and found[-1]["total_records"] == 2_500)
    )
    rows = rows_of(store)
    assert [row["state_hash"] for row in rows[: len(before)]] == [row["state_hash"] for row in before]
    every_offset_once(rows, topic, counts)
    assert sum(row["late"] for row in rows) == 0
    full = [row["watermark"] for row in rows if row["watermark"] is not None and row["watermark"] % 100 == 0]
    assert full == [100.0 * number for number in range(len(full))]
    assert len(full) >= 9


def test_a_topic_at_rest_costs_nothing(kafka, store, monkeypatch):
    topic = kafka.new_topic()
    with kafka.producer() as producer:
        for number in range(100):
            producer.send(topic, b"%d %d" % (number, number + 1))
    submitted: list[str] = []
    submit = RayExecutor.submit

    def counting(self: RayExecutor, order: Any) -> None:
        submitted.append(order.spec.id)
        submit(self, order)

    monkeypatch.setattr(RayExecutor, "submit", counting)
    seen: dict[str, Any] = {}

    def objects() -> list[str]:
        folder = Path(store)
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def watch() -> None:
        until(lambda: bool(found := rows_of(store)) and found[-1]["total_records"] == 100)
        # All epochs that may be under way are, behind a cut that waits.
        until(lambda: f"publish[{rows_of(store)[-1]['epoch'] + MAX_IN_FLIGHT}]" in submitted)
        seen["before"] = objects(), list(submitted)
        time.sleep(2.0)  # twenty closes
        seen["after"] = objects(), list(submitted)

    pipeline = Pipeline(f"kafka://{kafka.address}/{topic}", epoch_seconds=0.1)
    interrupted_after(pipeline, store, watch)
    assert seen["before"] == seen["after"]
    assert rows_of(store)[-1]["total_records"] == 100


def test_a_target_of_staleness_decides_how_large_epochs_are(store):
    target, rate = 1.0, 4_000.0
    source = "rmat://?scale=8&edges=24000&seed=5&deletes=0.2"
    options = {"columns": "src,dst,op", "rate": rate, "target_staleness": target, "epoch_edges": 10**6}
    run_until(Pipeline(source, **options), store, Interrupt(3))
    resume("r", store)
    entries = runs.open_run("r", store).entries
    rows = [entry["row"] for entry in entries]
    assert rows[-1]["total_records"] == 24_000
    for row in rows:
        assert row["staleness_ms"] / 1e3 >= row["records"] / rate - 1 / rate - 1e-3
        assert row["staleness_ms"] >= (row["published_at"] - row["scheduled_time"]) * 1e3
    # Before the first answer half of the target is left for it; what it really takes is learnt.
    assert max(row["records"] for row in rows) > 0.6 * target * rate
    shown = graph_stream("epochs", "--run-id", "r", "--store", store, "--json").checked().out.splitlines()
    assert [json.loads(line)["staleness_ms"] for line in shown] == [
        pytest.approx(row["staleness_ms"], abs=1e-3) for row in rows
    ]


def test_messages_are_as_old_as_their_timestamps_say(kafka, store):
    topic = kafka.new_topic()
    with kafka.producer() as producer:
        for number in range(1_000):
            producer.send(topic, b"%d %d" % (number, number + 1), timestamp_ms=int((time.time() - 60.0) * 1000))
    begun = time.time()
    Pipeline(f"kafka://{kafka.address}/{topic}?until=end", target_staleness=0.5, epoch_edges=400).run(
        run_id="r", store=store
    )
    rows = rows_of(store)
    assert [row["records"] for row in rows] == [400, 400, 200]  # too old already: the largest epochs there are
    for row in rows:
        assert 60.0 <= row["staleness_ms"] / 1e3 <= 60.0 + row["published_at"] - begun + 1.0
    assert all(math.isfinite(row["staleness_ms"]) for row in rows)
