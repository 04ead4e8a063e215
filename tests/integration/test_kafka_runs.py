"""Whole runs on topics of a real broker: the same as on files, through kills, and beside live sources."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.admin import NewPartitions

import exoflow
from graph_stream import Pipeline, runs
from graph_stream.errors import ConfigError
from graph_stream.pipeline import resume
from tests.fault.command import Command, graph_stream
from tests.integration.services import Kafka, KafkaServer
from tests.integration.test_pipeline import RMAT, Interrupt, expected, hashes

POISON = [b"poison", b"1 2 x", b"9" * 30 + b" 1 +", b"\xff\xfe 1 +"]
SPLITS = 3
"""Partitions of the topics: each gets the lines of one file."""


def lines_of(split: int, count: int, seed: int) -> list[bytes]:
    """Return edges with duplicates, deletes and poison."""
    drawn = random.Random(f"{seed} {split}")
    lines = []
    for _ in range(count):
        # Each vertex follows in one split, so that what is left in the end does not depend on how they are read.
        src, dst = SPLITS * drawn.randrange(20) + split, drawn.randrange(60)
        lines.append(b"%d %d %s" % (src, dst, b"+" if drawn.random() < 0.8 else b"-"))
        if drawn.random() < 0.1:
            lines.append(lines[-1])
        if drawn.random() < 0.02:
            lines.append(drawn.choice(POISON))
    return lines


def fill(kafka: Kafka, topic: str, parts: Sequence[Sequence[bytes]]) -> None:
    with kafka.producer() as producer:
        for split, lines in enumerate(parts):
            for line in lines:
                producer.send(topic, line, partition=split)


def write(folder: Path, topic: str, parts: Sequence[Sequence[bytes]]) -> str:
    folder.mkdir()
    for split, lines in enumerate(parts):
        (folder / f"{topic}-{split}.txt").write_bytes(b"".join(line + b"\n" for line in lines))
    return str(folder)


def options(source: str, store: Path, run_id: str, *more: object) -> list[object]:
    return ["--run-id", run_id, "--store", store, "--source", source, "--columns", "src,dst,op", *more]


def scores(store: Path, run_id: str) -> dict[int, tuple[float, float]]:
    opened = runs.open_run(run_id, str(store))
    table = runs.scores(opened, opened.newest).to_pylist()
    return {row["vertex"]: (row["influence"], row["error_bound"]) for row in table}


def rows(store: Path, run_id: str) -> list[dict]:
    return [entry["row"] for entry in runs.open_run(run_id, str(store)).entries]


def every_offset_once(found: Sequence[dict], topic: str, counts: Sequence[int]) -> None:
    """Check that the epochs' offsets join up from the first offset to the last."""
    for split, count in enumerate(counts):
        at = 0
        for row in found:
            begin, end = row["offsets"].get(f"{topic}-{split}", [at, at])
            assert begin == at
            at = end
        assert at == count


def poison_is_told_once(store: Path, run_id: str, topic: str, parts: Sequence[Sequence[bytes]]) -> None:
    """Check that the quarantine of the committed epochs holds each bad message, and nothing else."""
    told = [
        (record.split, record.offset, record.raw)
        for _, records in runs.bad_records(runs.open_run(run_id, str(store)))
        for record in records
    ]
    assert sorted(told) == [
        (f"{topic}-{split}", offset, line)
        for split, lines in enumerate(parts)
        for offset, line in enumerate(lines)
        if line in POISON
    ]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("mode", ["none", "sync"])
def test_a_topic_comes_to_what_its_records_in_files_come_to(kafka, tmp_path, mode):
    topic = kafka.new_topic(SPLITS)
    parts = [lines_of(split, 400 + 300 * split, seed=1) for split in range(SPLITS)]
    fill(kafka, topic, parts)
    Pipeline(f"kafka://{kafka.address}/{topic}?until=end", checkpoint=mode, **RMAT).run(
        run_id="run", store=str(tmp_path)
    )
    from_files = expected(write(tmp_path / "files", topic, parts), **RMAT)
    assert hashes(str(tmp_path), "run") == from_files.hashes
    opened = runs.open_run("run", str(tmp_path))
    assert runs.scores(opened, opened.newest).equals(from_files.scores[-1])
    found = rows(tmp_path, "run")
    every_offset_once(found, topic, [len(lines) for lines in parts])
    poison_is_told_once(tmp_path, "run", topic, parts)


def test_a_killed_run_counts_every_offset_once(kafka, tmp_path, ray_cluster):
    kill_and_resume(kafka, tmp_path, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_killed_run_counts_every_offset_once_whenever_it_is_killed(kafka, tmp_path, ray_cluster, seed):
    kill_and_resume(kafka, tmp_path, seed)


def kill_and_resume(kafka: Kafka, tmp_path: Path, seed: int) -> None:
    """Cut a live topic by time, fill it and add to its partitions, kill the run somewhere, and resume it."""
    moment = random.Random(seed)
    topic = kafka.new_topic(SPLITS - 1)
    parts = [lines_of(split, 1500, seed) for split in range(SPLITS)]
    counts = [len(lines) for lines in parts]
    store = tmp_path / "store"
    live = f"kafka://{kafka.address}/{topic}?from=earliest"
    arguments = options(live, store, "run", "--epoch-seconds", 0.2, "--epoch-edges", 200)

    fill(kafka, topic, [lines[: len(lines) // 2] for lines in parts[:-1]])
    with Command("run", *arguments) as run:
        run.until(lambda: newest(store) >= 1)
        refused = graph_stream("run", *arguments)
        assert refused.code == 1
        assert "WorkflowRunning" in refused.err or "is running" in refused.err
        with kafka.admin() as admin:
            admin.create_partitions({topic: NewPartitions(SPLITS)})
        fill(kafka, topic, [*(lines[len(lines) // 2 :] for lines in parts[:-1]), parts[-1]])
        time.sleep(moment.uniform(0.0, 2.0))  # the moment is what the test is about
        run.kill()
        run.until_nothing_is_left()
    before = rows(store, "run")
    with Command("resume", "--run-id", "run", "--store", store) as resumed:
        resumed.until(lambda: reached(store, topic) == counts)
        resumed.interrupt(group=False)  # while it waits for records, which never come
        assert resumed.end().code == 130
    found = rows(store, "run")
    assert [row["state_hash"] for row in found[: len(before)]] == [row["state_hash"] for row in before]
    every_offset_once(found, topic, counts)
    assert found[-1]["total_records"] + found[-1]["total_rejected"] == sum(counts)
    poison_is_told_once(store, "run", topic, parts)
    for row in found:
        if row["records"] < 200:  # not full: closed by the clock, and its latency counts from there
            assert row["scheduled_time"] / 0.2 == pytest.approx(round(row["scheduled_time"] / 0.2), abs=1e-3)

    files = write(tmp_path / "files", topic, parts)
    exact = {row["vertex"]: row for row in expected(files, **RMAT).scores[-1].to_pylist()}
    influences = scores(store, "run")
    assert influences.keys() == exact.keys()
    for vertex, (influence, bound) in influences.items():
        wide = bound + exact[vertex]["error_bound"] + 1e-12
        assert influence == pytest.approx(exact[vertex]["influence"], abs=wide)


def newest(store: Path) -> int:
    try:
        return runs.open_run("run", str(store)).newest
    except exoflow.ExoflowError:
        return 0


def reached(store: Path, topic: str) -> list[int]:
    """Return the offset behind the newest committed epoch, for each partition."""
    offsets = [0] * SPLITS
    for row in rows(store, "run"):
        for label, (_, end) in row["offsets"].items():
            offsets[int(label.rpartition("-")[2])] = end
    return offsets


@pytest.mark.usefixtures("ray_cluster")
def test_a_broker_that_dies_in_the_middle_is_waited_for(tmp_path):
    told: list[str] = []
    with KafkaServer(tmp_path / "kafka") as server:
        topic = server.kafka.new_topic(SPLITS)
        parts = [lines_of(split, 2000, seed=3) for split in range(SPLITS)]
        fill(server.kafka, topic, parts)

        def progress(row: Mapping[str, Any]) -> None:
            if row["epoch"] == 2:
                server.kill()
                restarting.start()

        restarting = threading.Thread(target=server.start)
        Pipeline(f"kafka://{server.kafka.address}/{topic}?until=end", rate=4000, **RMAT).run(
            run_id="run", store=str(tmp_path), progress=progress, tell=told.append
        )
        restarting.join()
    every_offset_once(rows(tmp_path, "run"), topic, [len(lines) for lines in parts])
    assert hashes(str(tmp_path), "run") == expected(write(tmp_path / "files", topic, parts), **RMAT).hashes


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_offsets_that_expire_while_a_run_is_down_are_told(kafka, tmp_path, policy):
    topic = kafka.new_topic()
    lines = [b"%d %d" % (i, i + 1) for i in range(2000)]
    fill(kafka, topic, [lines])
    store, told = str(tmp_path), []
    pipeline = Pipeline(f"kafka://{kafka.address}/{topic}?until=end", epoch_edges=200, on_lost_offset=policy, rate=2000)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(run_id="run", store=store, progress=Interrupt(2))
    with kafka.admin() as admin:
        admin.delete_records({TopicPartition(topic, 0): 1900})
    if policy == "fail":
        with pytest.raises(exoflow.TaskFailed, match=rf"{topic}-0 from offset \d+ up to 1900 are gone"):
            resume("run", store)
        return
    resume("run", store, tell=told.append)
    found = rows(tmp_path, "run")
    every_offset_once(found, topic, [2000])
    assert any("up to 1900 are gone" in line and "skipped" in line for line in told)
    assert sum(row["rejected"] for row in found) >= 1
    assert found[-1]["total_records"] < 2000


@pytest.mark.usefixtures("ray_cluster")
def test_what_a_run_settled_stays_and_what_it_committed_is_shown_as_lag(kafka, tmp_path):
    topic = kafka.new_topic()
    fill(kafka, topic, [[b"1 2"]])
    uri = f"kafka://{kafka.address}/{topic}?until=end&group={topic}"
    first = Pipeline(uri).run(run_id="run", store=str(tmp_path))
    with kafka.admin() as admin:
        group = admin.list_group_offsets(topic)[topic]
    assert {partition.partition: offset.offset for partition, offset in group.items()} == {0: 1}
    fill(kafka, topic, [[b"3 4"]])
    assert Pipeline(uri).run(run_id="run", store=str(tmp_path)) == first
    with pytest.raises(ConfigError, match="--epoch-seconds: None -> 2"):
        Pipeline(uri, epoch_seconds=2.0).run(run_id="run", store=str(tmp_path))
    assert Pipeline(uri).run(run_id="other", store=str(tmp_path))["total_records"] == 2
