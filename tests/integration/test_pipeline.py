"""The main path on a real Ray: one outcome whatever the mode, the shape and the interruptions."""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import exoflow
from exoflow.blobs import Blobs
from exoflow.journal import read_journal
from exoflow.storage import LocalStore
from graph_stream import Pipeline, runs
from graph_stream.certificate import error_bound
from graph_stream.config import RunConfig
from graph_stream.epoch import combine
from graph_stream.errors import ConfigError, EpochNotFound
from graph_stream.eventtime import NEVER, EventTimes, advanced, microseconds
from graph_stream.graph import PartitionState
from graph_stream.inline import is_inline
from graph_stream.personalization import read_weights
from graph_stream.pipeline import Progress, resume
from graph_stream.rounds import alone
from graph_stream.snapshot import Manifest
from ingest import EpochReader, open_source, write_rmat
from spark.session import JavaMissing, require_java

pytestmark = pytest.mark.usefixtures("ray_cluster")

RMAT = {"columns": "src,dst,op", "epoch_edges": 500}
MESSAGES = {"columns": "src,dst,time", "epoch_edges": 5_000}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a run has to come to: computed in this process, by one partition and one thread."""

    hashes: list[str]
    scores: list[pa.Table]


@cache
def reference(config: RunConfig) -> Reference:
    (parameters,) = config.parameters()
    state = PartitionState(parameters)
    found = Reference([], [])
    last = False
    with EpochReader([open_source(uri, config.columns) for uri in config.sources], config.epoch_edges) as reader:
        position, watermark = reader.start(), NEVER
        while not last:
            batch = reader.read(position)
            times = EventTimes(microseconds(batch.time), watermark) if config.has_event_time else None
            watermark = advanced(watermark, batch.time)
            result = state.apply(state.epoch + 1, batch.src, batch.dst, batch.op, alone, times)
            summary = combine([result], parameters)
            vertex, influence = state.scores()
            order = np.argsort(vertex)
            bound = error_bound(influence[order], summary.error_bound)
            found.hashes.append(summary.state_hash)
            found.scores.append(pa.table([vertex[order], influence[order], bound], schema=runs.SCORES_SCHEMA))
            position, last = batch.end, batch.last
    return found


def expected(source: str, **options: Any) -> Reference:
    return reference(RunConfig((source,), **options))


def hashes(store: str, run_id: str = "r") -> list[str]:
    return [entry["row"]["state_hash"] for entry in runs.open_run(run_id, store).entries]


class Interrupt:
    """A progress callback that interrupts the run at an epoch, and remembers what was published."""

    def __init__(self, epoch: int | None = None) -> None:
        self._epoch = epoch
        self.published: list[int] = []

    def __call__(self, row: Any) -> None:
        self.published.append(row["epoch"])
        if row["epoch"] == self._epoch:
            raise KeyboardInterrupt


def run_until(pipeline: Pipeline, store: str, progress: Progress) -> None:
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(run_id="r", store=store, progress=progress)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture(scope="module")
def rmat() -> str:
    return "rmat://?scale=8&edges=6000&seed=5&deletes=0.2"


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a stream of messages between students, or a synthetic one where it is not at hand."""
    path = Path(os.environ.get("EXOFLOW_DATA_DIR", "")) / "CollegeMsg.txt.gz"
    if path.is_file():
        return str(path)
    made = tmp_path_factory.mktemp("messages") / "messages.txt"
    plain = made.with_name("plain.txt")
    write_rmat(plain, 10, 60_000, seed=9)
    made.write_text("".join(f"{line} {i}\n" for i, line in enumerate(plain.read_text().splitlines())))
    return str(made)


# --- one outcome --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partitions", "threads", "mode", "checkpoint_every"),
    [
        (1, 1, "none", 1),
        (1, 2, "async", 3),
        (2, 1, "sync", 3),
        (2, 2, "none", 3),
        (4, 1, "async", 1),
        (4, 2, "sync", 1),
    ],
)
def test_one_state_hash_per_epoch(messages, partitions, threads, mode, checkpoint_every, store):
    shape = {"partitions": partitions, "threads": threads, "checkpoint_every": checkpoint_every}
    last = Pipeline(messages, checkpoint=mode, **shape, **MESSAGES).run(run_id="r", store=store)
    assert hashes(store) == expected(messages, **MESSAGES).hashes
    assert last == runs.open_run("r", store).entries[-1]["row"]


@pytest.mark.parametrize(("mode", "before", "after"), [("async", 1, 2), ("sync", 4, 1), ("none", 2, 1)])
def test_resume_on_other_partitions(rmat, mode, before, after, store):
    pipeline = Pipeline(rmat, checkpoint=mode, partitions=before, checkpoint_every=3, **RMAT)
    run_until(pipeline, store, Interrupt(8))
    survived = hashes(store)
    assert survived == expected(rmat, **RMAT).hashes[: len(survived)]
    assert bool(survived) == (mode != "none")
    again = Interrupt()
    resume("r", store, partitions=after, progress=again)
    assert hashes(store) == expected(rmat, **RMAT).hashes
    assert sorted(again.published) == list(range(len(survived) + 1, len(hashes(store)) + 1))


def test_scores_of_every_kept_epoch_also_between_two_checkpoints(rmat, store):
    run_until(Pipeline(rmat, checkpoint="sync", checkpoint_every=3, **RMAT), store, Interrupt(10))
    resume("r", store)
    run = runs.open_run("r", store)
    with_snapshot = [entry["epoch"] for entry in run.entries if entry["bytes"] is not None]
    assert set(with_snapshot) >= {3, 6, 9}
    assert len(with_snapshot) < run.newest
    wanted = expected(rmat, **RMAT).scores
    for epoch in range(3, run.newest + 1):
        assert runs.scores(run, epoch).equals(wanted[epoch - 1])
    with pytest.raises(EpochNotFound, match=r"state of epoch 2 .* kept are snapshots from epoch 3 on"):
        runs.scores(run, 2)


def test_several_rankings_are_each_what_they_would_be_alone(rmat, store, tmp_path):
    favoured = tmp_path / "favoured.csv"
    favoured.write_text("vertex,weight\n3,500\n17,0.25\n")
    both = {"algorithm": ("pagerank", "tunkrank"), "personalization": str(favoured), **RMAT}
    run_until(Pipeline(rmat, partitions=2, checkpoint_every=3, **both), store, Interrupt(8))
    resume("r", store, partitions=1)
    run = runs.open_run("r", store)
    alone_with = {"pagerank": {"personalization": str(favoured)}, "tunkrank": {}}
    for name, options in alone_with.items():
        Pipeline(rmat, algorithm=name, **options, **RMAT).run(run_id=name, store=store)
        single = runs.open_run(name, store)
        for epoch in (run.newest - 1, run.newest):
            assert runs.scores(run, epoch, name).equals(runs.scores(single, epoch))
        assert runs.top(run, run.newest, 5, name).equals(runs.top(single, run.newest, 5))
        of_both = [ranking["state_hash"] for ranking in run.row(run.newest)["rankings"]]
        assert of_both[both["algorithm"].index(name)] == single.row(single.newest)["state_hash"]
    assert runs.scores(run, run.newest).equals(runs.scores(run, run.newest, "pagerank"))
    with pytest.raises(ConfigError, match="this run computes tunkrank, not pagerank"):
        runs.scores(single, 1, "pagerank")
    favoured.write_text("vertex,weight\n3,501\n")
    read_weights.cache_clear()
    with pytest.raises(ConfigError, match="is not what the run began with"):
        runs.scores(run, run.newest)


# --- event time ---------------------------------------------------------------------------------------------


def edges_in_window(source: str, window: float) -> set[tuple[int, int]]:
    """Return the edges at the last epoch of `MESSAGES`, read off the file: there are no deletes, nothing is late."""
    opener = gzip.open if source.endswith(".gz") else open
    with opener(source, "rt") as lines:
        records = [tuple(map(int, line.split())) for line in lines]
    last: dict[tuple[int, int], int] = {}
    for src, dst, time in records:
        last[src, dst] = max(time, last.get((src, dst), time))
    in_last_epoch = (len(records) - 1) % MESSAGES["epoch_edges"] + 1
    watermark = max(time for _, _, time in records[:-in_last_epoch])
    return {pair for pair, time in last.items() if time > watermark - window and pair[0] != pair[1]}


@pytest.mark.parametrize(("mode", "before", "after"), [("async", 2, 1), ("sync", 1, 3)])
def test_edges_expire_the_same_whatever_happens(messages, mode, before, after, store):
    with EpochReader([open_source(messages, MESSAGES["columns"])], 10**9) as reader:
        times = reader.read(reader.start()).time
    assert times is not None
    options = {**MESSAGES, "window": float(np.ptp(times) // 8)}
    shape = {"partitions": before, "checkpoint": mode, "checkpoint_every": 3}
    run_until(Pipeline(messages, **shape, **options), store, Interrupt(7))
    resume("r", store, partitions=after)
    wanted = expected(messages, **options)
    assert hashes(store) == wanted.hashes
    run = runs.open_run("r", store)
    for epoch in range(3, run.newest + 1):
        assert runs.scores(run, epoch).equals(wanted.scores[epoch - 1])
    left = edges_in_window(messages, options["window"])
    assert set(runs.scores(run, run.newest)["vertex"].to_pylist()) == {vertex for edge in left for vertex in edge}
    rows = [entry["row"] for entry in run.entries]
    assert rows[-1]["edges"] == len(left) < max(row["edges"] for row in rows)
    assert sum(row["expired"] for row in rows) == sum(row["deleted"] for row in rows) > 0
    assert rows[0]["watermark"] is None
    assert rows[-1]["watermark"] == sorted(times)[(run.newest - 1) * MESSAGES["epoch_edges"] - 1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window": 0.0}, "window must lie in 1e-06..1e\\+12 seconds, got 0.0"),
        ({"window": float("nan")}, "window must be at most 1e\\+12 seconds, got nan"),
        ({"allowed_lateness": -1.0}, "allowed-lateness must lie in 0..1e\\+12 seconds, got -1.0"),
        ({"allowed_lateness": float("inf")}, "allowed-lateness must be at most 1e\\+12 seconds, got inf"),
        ({"window": 60.0, "columns": "src,dst,op"}, "need a time column: --columns has src,dst,op"),
    ],
)
def test_event_time_that_cannot_be_is_refused(messages, options, text):
    with pytest.raises(ConfigError, match=text):
        Pipeline(messages, **{"columns": "src,dst,time", **options})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"algorithm": ("tunkrank", "tunkrank")}, "name each algorithm once"),
        ({"algorithm": ("pagerang",)}, "unknown algorithm 'pagerang'"),
        ({"damping": 1.0}, "0 <= damping < 1, got 1.0"),
        ({"personalization": "weights.csv"}, r"--personalization .*weights.csv cannot be read: No such file"),
        ({"algorithm": "pagerank", "personalization": "WRONG"}, "it needs the columns vertex and weight"),
        ({"personalization": "RIGHT"}, "--personalization needs --algorithm pagerank"),
    ],
)
def test_rankings_that_cannot_be_are_refused(rmat, options, text, tmp_path):
    (tmp_path / "RIGHT").write_text("vertex,weight\n3,500\n")
    (tmp_path / "WRONG").write_text("id,weight\n3,500\n")
    if options.get("personalization", "").isupper():
        options = {**options, "personalization": str(tmp_path / options["personalization"])}
    with pytest.raises(ConfigError, match=text):
        Pipeline(rmat, **options)


def test_a_run_at_its_limit_of_memory_stops_and_goes_on_with_more(rmat, store):
    pipeline = Pipeline(rmat, checkpoint="sync", partitions=2, **RMAT)
    run_until(pipeline, store, Interrupt(5))
    # No process is that small.
    with pytest.raises(exoflow.TaskFailed, match=r"before epoch \d+ partition \d holds [\d,]+ edges.*--max-memory"):
        resume("r", store, max_memory=1 << 22)
    survived = hashes(store)
    assert len(survived) >= 4
    resume("r", store, max_memory=1 << 40)
    assert hashes(store) == expected(rmat, **RMAT).hashes
    assert all(entry["row"]["memory_bytes"] > 1 << 22 for entry in runs.open_run("r", store).entries)


def test_the_number_of_epochs_can_be_limited(rmat, store):
    assert Pipeline(rmat, epochs=4, **RMAT).run(run_id="r", store=store)["epoch"] == 4
    assert hashes(store) == expected(rmat, **RMAT).hashes[:4]


def test_other_options_are_refused(rmat, store):
    Pipeline(rmat, epochs=2, **RMAT).run(run_id="r", store=store)
    with pytest.raises(ConfigError, match=re.escape("--epochs: 2 -> 3")):
        Pipeline(rmat, epochs=3, **RMAT).run(run_id="r", store=store)


def test_a_source_that_cannot_be_opened_leaves_no_run(store):
    with pytest.raises(ConfigError, match=r"no/where\.txt: there is no file"):
        Pipeline("no/where.txt").run(run_id="r", store=store)
    with pytest.raises(exoflow.WorkflowNotFound):
        runs.open_run("r", store)


# --- pace ---------------------------------------------------------------------------------------------------


def test_a_paced_stream_follows_its_schedule_and_not_the_computation(rmat, store):
    rate = 5_000.0
    Pipeline(rmat, rate=rate, **RMAT).run(run_id="r", store=store)
    rows = [entry["row"] for entry in runs.open_run("r", store).entries]
    scheduled = [row["scheduled_time"] for row in rows]
    assert np.diff(scheduled) == pytest.approx(np.full(len(rows) - 1, RMAT["epoch_edges"] / rate), abs=1e-6)
    assert all(row["published_at"] >= row["scheduled_time"] for row in rows)


def test_a_run_is_resumed_at_another_rate(rmat, store):
    described = Pipeline(rmat, rate=5_000.0, **RMAT)
    run_until(described, store, Interrupt(4))
    with pytest.raises(ConfigError, match="rate must be above 0"):
        resume("r", store, rate=0.0)
    resume("r", store, rate=20_000.0)
    scheduled = [entry["row"]["scheduled_time"] for entry in runs.open_run("r", store).entries]
    assert np.diff(scheduled)[-3:] == pytest.approx(np.full(3, RMAT["epoch_edges"] / 20_000), abs=1e-6)
    assert described.run(run_id="r", store=store)["epoch"] == len(scheduled)


# --- bad records --------------------------------------------------------------------------------------------

BAD_LINES = {1_200: "3 x", 1_201: "one two", 4_100: "5", 5_600: "9223372036854775808 1"}


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """Return a stream of 6,000 good records with bad ones in between."""
    path = tmp_path / "dirty.txt"
    write_rmat(path, 8, 6_000, seed=5)
    lines = path.read_text().splitlines()
    for place in sorted(BAD_LINES, reverse=True):
        lines.insert(place, BAD_LINES[place])
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("mode", ["none", "async", "sync"])
def test_bad_records_are_quarantined_once_whatever_happens(dirty, mode, store):
    options = {"columns": "src,dst", "epoch_edges": 500}
    run_until(Pipeline(str(dirty), checkpoint=mode, **options), store, Interrupt(9))
    last = resume("r", store)
    assert (last["total_records"], last["total_rejected"]) == (6_000, len(BAD_LINES))
    found = list(runs.bad_records(runs.open_run("r", store)))
    assert [epoch for epoch, _ in found] == [3, 9, 12]
    records = [record for _, of_epoch in found for record in of_epoch]
    assert [record.raw.decode() for record in records] == list(BAD_LINES.values())
    data = dirty.read_bytes()
    assert all(data[record.offset :].startswith(record.raw) for record in records)
    assert all(record.reason and record.split == "dirty.txt" and not record.cut for record in records)
    assert hashes(store) == expected(str(dirty), **options).hashes


def test_too_many_bad_records_stop_the_run_which_resumes_once_they_are_put_right(dirty, store):
    options = {"columns": "src,dst", "epoch_edges": 500}
    good = expected(str(dirty), **options)
    pipeline = Pipeline(str(dirty), max_bad_records=2, **options)
    with pytest.raises(exoflow.TaskFailed) as stopped:
        pipeline.run(run_id="r", store=store)
    assert re.search(
        r"TooManyBadRecords: 3 records could not be read, more than --max-bad-records 2; "
        r"in epoch 9 the first is at dirty\.txt, offset \d+: ",
        stopped.value.detail,
    )
    survived = hashes(store)
    assert 0 < len(survived) <= 8
    assert survived == good.hashes[: len(survived)]
    with pytest.raises(exoflow.TaskFailed, match="3 records could not be read"):
        resume("r", store)

    # The record becomes a comment of its own length, so that what comes after it stays where it is.
    dirty.write_text(dirty.read_text().replace(f"\n{BAD_LINES[4_100]}\n", "\n#\n"))
    with pytest.raises(exoflow.TaskFailed, match="in epoch 12 the first is at"):
        resume("r", store)
    dirty.write_text(dirty.read_text().replace(f"\n{BAD_LINES[5_600]}\n", f"\n{'#' * len(BAD_LINES[5_600])}\n"))
    assert resume("r", store)["total_rejected"] == 2
    assert hashes(store) == good.hashes


def test_files_that_are_cut_short_stop_the_run_which_resumes_once_they_are_whole(tmp_path, store):
    folder = tmp_path / "in"
    folder.mkdir()
    whole = {}
    for seed, name in enumerate(("a.txt.gz", "b.parquet", "c.txt")):
        write_rmat(folder / name, 8, 3_000, seed=seed)
        whole[name] = (folder / name).read_bytes()
    options = {"columns": "src,dst", "epoch_edges": 500}
    good = expected(str(folder), **options)
    for name in ("a.txt.gz", "b.parquet"):
        (folder / name).write_bytes(whole[name][: len(whole[name]) // 2])
    with pytest.raises(exoflow.TaskFailed, match=r"a\.txt\.gz' cannot be read from position \d+ on"):
        Pipeline(str(folder), **options).run(run_id="r", store=store)
    (folder / "a.txt.gz").write_bytes(whole["a.txt.gz"])
    with pytest.raises(exoflow.TaskFailed, match=r"b\.parquet' cannot be read from position 0 on.*and resume"):
        resume("r", store)
    (folder / "b.parquet").write_bytes(whole["b.parquet"])
    assert resume("r", store)["total_records"] == 9_000
    assert hashes(store) == good.hashes


# --- retention ----------------------------------------------------------------------------------------------


def test_old_epochs_leave_the_store_but_not_the_history(messages, store):
    options = {**MESSAGES, "epoch_edges": 250}
    Pipeline(messages, keep_epochs=5, **options).run(run_id="r", store=store)
    wanted = expected(messages, **options)
    assert len(wanted.hashes) > 200
    assert hashes(store) == wanted.hashes
    run = runs.open_run("r", store)
    for epoch in range(run.newest - 4, run.newest + 1):
        assert runs.scores(run, epoch).equals(wanted.scores[epoch - 1])
    with pytest.raises(EpochNotFound, match=r"state of epoch 3 .* can no longer be rebuilt.*--keep-epochs 5"):
        runs.scores(run, 3)
    # Each epoch writes a delta, and every so many a merged one; what is not yet collected at the end is that of the
    # at most 64 epochs between two folds, however many there were.
    assert len(list((Path(store) / "workflows" / "r" / "blobs").iterdir())) <= 130


# --- audits -------------------------------------------------------------------------------------------------


@pytest.mark.java
# In sync an epoch's newest object has no file of its own.
@pytest.mark.parametrize("checkpoint", ["async", "sync"])
def test_audits_beside_the_stream_hold(checkpoint, rmat, store):
    try:
        require_java()
    except JavaMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    Pipeline(rmat, batch_every=6, checkpoint=checkpoint, **RMAT).run(run_id="r", store=store)
    entries = runs.open_run("r", store).entries
    assert hashes(store) == expected(rmat, **RMAT).hashes
    batches = {entry["epoch"]: entry["batch"] for entry in entries if entry["batch"] is not None}
    assert list(batches) == [6, 12]
    for epoch, batch in batches.items():
        assert batch["within_bound"]
        assert 0 <= batch["mean_relative_drift"] <= batch["max_relative_drift"] <= batch["error_bound"]
        assert batch["error_bound"] == entries[epoch - 1]["row"]["error_bound"]
        assert batch["edges"] == entries[epoch - 1]["row"]["edges"]


def test_in_sync_small_epochs_are_one_write_and_nothing_is_left_without_a_name(rmat, store):
    """The delta rides in the record that the run waits for; the store has it one record later."""
    Pipeline(rmat, columns="src,dst,op", checkpoint="sync", epoch_edges=200, partitions=2).run(run_id="r", store=store)
    history = read_journal(LocalStore(store), "r").history
    states = {
        record.iteration: Blobs(LocalStore(store), "r").load(record.state)
        for record in history.committed.values()
        if record.task.startswith("apply[") and record.state is not None
    }
    last = max(states)
    assert last == 30
    for epoch, members in states.items():
        for member in members:
            entries = Manifest.from_json(member["entries"]).entries
            assert [is_inline(entry) for entry in entries] == [False] * (len(entries) - 1) + [epoch != last]
    stored = {key.rsplit("/", 1)[1] for key in LocalStore(store).list("workflows/r/blobs")}
    assert stored == history.blobs()
    assert hashes(store) == expected(rmat, columns="src,dst,op", epoch_edges=200).hashes
    for epoch in (last - 1, last):
        assert runs.state_at(runs.open_run("r", store), epoch).epoch == epoch
