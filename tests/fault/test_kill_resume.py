"""SIGKILL of everything at random moments: a resumed run ends exactly like one that nothing happened to."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from graph_stream.runs import open_run
from ingest import write_rmat
from spark.session import JavaMissing, require_java
from tests.fault.command import Command, graph_stream
from tests.fault.crashes import (
    EPOCHS,
    RATE,
    RECORDS,
    Outcome,
    Stream,
    epochs_of,
    epochs_published,
    outcome_of,
    published,
    wait_for_moment,
)
from tests.integration.services import S3Server, s3_credentials, s3_service

MODES = ("none", "async", "sync")
pytestmark = pytest.mark.timeout(300)


def crash_and_resume(stream: Stream, undisturbed: Outcome, store: Path | str, mode: str, seed: int) -> None:
    with Command("run", *stream.options("run", store, mode), terminal=True) as run:
        if mode != "none":
            run.until(lambda: published(run) > 0 and open_run("run", str(store)).newest > 0)
        wait_for_moment(run, f"{mode} {seed}")
        run.kill()
        run.until_nothing_is_left()
    before = epochs_of("run", store)
    assert [epoch["state_hash"] for epoch in before] == undisturbed.hashes[: len(before)]
    assert bool(before) == (mode != "none")

    if seed % 2:
        # Once more, while it resumes; and this time the rest of the tree has to notice by itself.
        with Command("resume", "--run-id", "run", "--store", store, terminal=True) as resumed:
            wait_for_moment(resumed, f"{mode} {seed} again", len(before) + 1)
            resumed.kill_driver()
            resumed.until_nothing_is_left()
        again = epochs_of("run", store)
        assert len(again) >= len(before)
        before = again

    ended = graph_stream("resume", "--run-id", "run", "--store", store, "--json").checked()
    assert ended.result["status"] == "SUCCESSFUL"
    assert epochs_published(ended.result) == EPOCHS - len(before)
    outcome = outcome_of("run", store)
    assert outcome.hashes == undisturbed.hashes
    assert outcome.scores.equals(undisturbed.scores)
    for name in ("epoch", "edges", "rounds", "error_bound", "offsets"):
        assert [epoch[name] for epoch in outcome.epochs] == [epoch[name] for epoch in undisturbed.epochs]
    # Committed is committed: what readers could see before the crash is what they see after it.
    assert [epoch["bytes"] for epoch in outcome.epochs[: len(before)]] == [epoch["bytes"] for epoch in before]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_resumes_to_the_undisturbed_outcome(stream, undisturbed, tmp_path, mode, seed):
    crash_and_resume(stream, undisturbed, tmp_path, mode, seed)


@pytest.fixture
def s3_store(tmp_path: Path) -> Iterator[str]:
    with s3_credentials(), s3_service(tmp_path) as s3:
        yield s3.new_store()


def test_a_killed_run_on_s3_resumes_to_the_undisturbed_outcome(stream, undisturbed, s3_store):
    crash_and_resume(stream, undisturbed, s3_store, "async", seed=1)


def test_a_run_whose_s3_server_is_killed_goes_on_or_says_why_and_can_be_resumed(stream, undisturbed, tmp_path):
    with s3_credentials(), S3Server(tmp_path) as server:
        store = server.s3.new_store()
        with Command("run", *stream.options("run", store, "async"), terminal=True) as run:
            for epoch in (3, 12, 21):
                run.until(lambda epoch=epoch: published(run) >= epoch)
                server.kill()
                server.start()
            ended = run.end()
        # The pauses between tries are random, so some runs outlast an outage and some do not.
        if ended.code:
            assert ended.code == 1
            assert "cannot" in ended.err
            graph_stream("resume", "--run-id", "run", "--store", store, "--json").checked()
        outcome = outcome_of("run", store)
    assert outcome.hashes == undisturbed.hashes
    assert outcome.scores.equals(undisturbed.scores)


class StreamWithTimes(Stream):
    """A stream whose records have times, by which edges expire."""

    def options(
        self, run_id: str, store: Path | str, mode: str, rate: float | None = RATE, **more: object
    ) -> list[object]:
        """Return the options of ``graph-stream run`` over this stream."""
        given = {"columns": "src,dst,op,time", "window": 30_000, "allowed-lateness": 500, "partitions": 2}
        return super().options(run_id, store, mode, rate, **given, **more)


@pytest.fixture
def stream_with_times(tmp_path: Path) -> StreamWithTimes:
    """Return a stream that goes on by a record a second, some of them up to a quarter of an hour late."""
    plain, path = tmp_path / "plain.txt", tmp_path / "timed.txt"
    write_rmat(plain, 12, RECORDS, seed=7, deletes=0.2)
    lateness = random.Random(1)
    lines = enumerate(plain.read_text().splitlines())
    path.write_text("".join(f"{line} {second - lateness.choice((0, 5, 900))}\n" for second, line in lines))
    return StreamWithTimes(path)


@pytest.mark.java
def test_a_killed_run_with_event_time_resumes_to_the_undisturbed_outcome_and_is_audited(stream_with_times, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    graph_stream("run", *stream_with_times.options("undisturbed", whole, "async", rate=None)).checked()
    undisturbed = outcome_of("undisturbed", whole)
    crash_and_resume(stream_with_times, undisturbed, killed, "async", seed=2)
    for name in ("watermark", "expired", "late", "tombstones"):
        told = [epoch[name] for epoch in epochs_of("run", killed)]
        assert told == [epoch[name] for epoch in undisturbed.epochs]
        assert told[-1] > 0
    skip_without_java()
    audit = graph_stream("audit", "--run-id", "run", "--store", killed, "--json").checked()
    assert audit.result["within_bound"]


@pytest.fixture
def two_speeds(tmp_path: Path) -> list[Path]:
    """Return two streams over the same 6,000 seconds, one with four times the records of the other."""
    paths = []
    for number, (records, step) in enumerate(((24_000, 0.25), (6_000, 1.0))):
        plain, path = tmp_path / "plain.txt", tmp_path / f"every-{step}.txt"
        write_rmat(plain, 12, records, seed=number, deletes=0.2)
        disorder = random.Random(number)
        lines = enumerate(plain.read_text().splitlines())
        path.write_text("".join(f"{line} {index * step - disorder.choice((0, 5, 60))}\n" for index, line in lines))
        paths.append(path)
    return paths


@pytest.mark.java
@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.soak), pytest.param(5, marks=pytest.mark.soak)])
def test_a_killed_run_with_epochs_by_event_time_resumes_to_the_undisturbed_outcome(two_speeds, tmp_path, seed):
    options: list[object] = [part for path in two_speeds for part in ("--source", path)]
    options += ["--columns", "src,dst,op,time", "--epoch-event-seconds", 50, "--window", 1_000]
    options += ["--allowed-lateness", 60]
    graph_stream("run", "--run-id", "run", "--store", tmp_path / "whole", *options).checked()
    undisturbed = outcome_of("run", tmp_path / "whole")

    store = tmp_path / "killed"
    with Command("run", "--run-id", "run", "--store", store, *options, terminal=True) as run:
        run.until(lambda: published(run) > 0 and open_run("run", str(store)).newest > 0)
        wait_for_moment(run, f"event time {seed}")
        run.kill()
        run.until_nothing_is_left()
    before = epochs_of("run", store)
    assert 0 < len(before) < len(undisturbed.epochs)
    graph_stream("resume", "--run-id", "run", "--store", store).checked()
    outcome = outcome_of("run", store)
    assert outcome.hashes == undisturbed.hashes
    assert [epoch["state_hash"] for epoch in before] == undisturbed.hashes[: len(before)]
    assert outcome.scores.equals(undisturbed.scores)
    for name in ("epoch", "edges", "offsets", "watermark", "expired", "late", "tombstones"):
        assert [epoch[name] for epoch in outcome.epochs] == [epoch[name] for epoch in undisturbed.epochs]
    assert sum(epoch["edges"] for epoch in outcome.epochs) == 30_000
    assert sum(epoch["expired"] for epoch in outcome.epochs) > 0
    # However far apart the two are read: each is late by its own disorder at most, and that is allowed.
    assert sum(epoch["late"] for epoch in outcome.epochs) == 0
    skip_without_java()
    audit = graph_stream("audit", "--run-id", "run", "--store", store, "--json").checked()
    assert audit.result["within_bound"]


def skip_without_java() -> None:
    try:
        require_java()
    except JavaMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_killed_run_resumes_to_the_undisturbed_outcome_many_times(stream, undisturbed, tmp_path, mode, seed):
    crash_and_resume(stream, undisturbed, tmp_path, mode, seed)


@pytest.mark.java
def test_a_batch_cut_off_by_a_crash_is_completed_once(stream, undisturbed, tmp_path):
    skip_without_java()
    batches = tmp_path / "workflows" / "run" / "objects" / "batches"
    with Command("run", *stream.options("run", tmp_path, "async", batch_every=20), terminal=True) as run:
        run.until(lambda: any(batches.glob("*/attempt-*")))
        run.kill()
        run.until_nothing_is_left()
    assert not list(batches.glob("*/_current.json"))

    result = graph_stream("resume", "--run-id", "run", "--store", tmp_path, "--json").checked().result
    assert result["batches"] == EPOCHS // 20
    assert result["state_hash"] == undisturbed.hashes[-1]
    folders = sorted(batches.iterdir())
    assert len(folders) == EPOCHS // 20
    for epoch, folder in zip((20, 40), folders, strict=True):
        pointer = json.loads((folder / "_current.json").read_text())
        assert [path.name for path in folder.glob("attempt-*")] == [pointer["attempt"]]
        audit = graph_stream("audit", "--run-id", "run", "--store", tmp_path, "--epoch", epoch, "--json").checked()
        assert audit.result["within_bound"]
        assert audit.result["path"] == str(folder / pointer["attempt"])
