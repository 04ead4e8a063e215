"""What durability takes: bytes of an epoch's delta, and the time from a crash to the next answer."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import Goal, show_goals, write
from online_runs import rmat_file, whole_run

import exoflow
from exoflow.blobs import Blobs
from graph_stream import snapshot
from graph_stream.ahead import one_ahead
from graph_stream.algorithms import Parameters
from graph_stream.graph import PartitionState, warm_up
from graph_stream.partition import load
from graph_stream.pipeline import resume
from graph_stream.rounds import alone
from graph_stream.runs import open_run, snapshot_of
from graph_stream.snapshot import Manifest
from ingest.synthetic import Rmat

DELTA_EPOCHS = (100, 1_000, 10_000, 100_000)
DELTA_MEASURED = 10
BYTES_PER_ROW = 16
RESTORE_US_PER_EDGE = 0.15
RECOVERY_EPOCH_EDGES = 100_000


def delta(_folder: Path, options: argparse.Namespace) -> None:
    """Measure the objects that epochs write, before and after compression."""
    rmat = Rmat(options.delta_scale, options.delta_edges, 1, 0.1)
    state = PartitionState(Parameters())
    at = options.delta_edges - sum(DELTA_MEASURED * edges for edges in DELTA_EPOCHS)
    _apply(state, rmat, 0, at)
    rows: list[dict[str, object]] = []
    goals = []
    print(f"\n## Deltas: R-MAT scale {options.delta_scale}, {options.delta_edges:,} records, a tenth of them deletes\n")
    print("| epoch | changed edges | changed c | bytes stored | bytes/row before compression | stored |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for edges in DELTA_EPOCHS:
        plain, stored, changed_edges, changed_c = [], [], [], []
        for _ in range(DELTA_MEASURED):
            _apply(state, rmat, at, at + edges)
            at += edges
            changes = state.capture()
            data = snapshot.encode(changes, state.epoch, state.epoch)
            plain.append(_plain_bytes(data))
            stored.append(len(data))
            changed_c.append(len(changes.vertex))
            changed_edges.append(len(changes) - len(changes.vertex))
        n_rows = sum(changed_edges) + sum(changed_c)
        row = {
            "epoch_edges": edges,
            "changed_edges": float(np.median(changed_edges)),
            "changed_c": float(np.median(changed_c)),
            "stored_bytes": float(np.median(stored)),
            "plain_bytes_per_row": sum(plain) / n_rows,
            "stored_bytes_per_row": sum(stored) / n_rows,
        }
        rows.append(row)
        print(
            f"| {edges:,} | {row['changed_edges']:,.0f} | {row['changed_c']:,.0f} | {row['stored_bytes']:,.0f} | "
            f"{row['plain_bytes_per_row']:.1f} | {row['stored_bytes_per_row']:.1f} |"
        )
        name = f"bytes per changed edge or c before compression, epochs of {edges:,}"
        goals.append(Goal(name, sum(plain) / n_rows, at_most=BYTES_PER_ROW))
    show_goals(goals)
    write(options.out / "delta.parquet", rows)


def _apply(state: PartitionState, rmat: Rmat, start: int, stop: int) -> None:
    records = rmat.records(start, stop)
    state.apply(state.epoch + 1, records.src, records.dst, records.op, alone)


def _plain_bytes(data: bytes) -> int:
    """Return the bytes of an object as if its pages were not compressed: pages as encoded, and the footer."""
    metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return len(data) + sum(column.total_uncompressed_size - column.total_compressed_size for column in columns)


# --- recovery ---------------------------------------------------------------------------------------------


def recovery(folder: Path, options: argparse.Namespace) -> None:
    """Kill a run with SIGKILL and measure how long its successor takes to the next answer."""
    path = rmat_file(folder, options.recovery_scale, options.recovery_edges)
    warm_up()
    rows: list[dict[str, object]] = []
    print(f"\n## Recovery: SIGKILL within {options.recovery_edges:,} edges, epochs of {RECOVERY_EPOCH_EDGES:,}\n")
    print("| edges kept | to the next answer, s | start, s | bytes read, s | restored alone, s | us/edge | replay, s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    goals = []
    for run in range(options.recovery_runs):
        with tempfile.TemporaryDirectory(dir=folder) as store:
            row = _recover(path, store, options)
        rows.append({"run": run + 1, **row})
        print(
            f"| {row['edges']:,.0f} | {row['total']:.2f} | {row['start']:.2f} | {row['read']:.2f} | "
            f"{row['restore']:.2f} | {row['restore'] / row['edges'] * 1e6:.3f} | {row['replay']:.2f} |",
            flush=True,
        )
        bound = row["read"] + RESTORE_US_PER_EDGE * 1e-6 * row["edges"] + row["replay"]
        goals = [
            Goal("seconds to the next answer, less the start", row["total"] - row["start"], at_most=round(bound, 3)),
            Goal("us per edge restored, alone", row["restore"] / row["edges"] * 1e6, at_most=RESTORE_US_PER_EDGE),
        ]
    show_goals(goals)
    write(options.out / "recovery.parquet", rows)


def _recover(path: Path, store: str, options: argparse.Namespace) -> dict[str, float]:
    _run_and_kill(path, store, options)
    run = open_run("bench", store)
    committed = run.newest
    with snapshot_of(run, committed) as (states, epoch):
        blobs = Blobs(run.store, run.run_id)
        names = [entry.blob for state in states for entry in Manifest.from_json(state["entries"]).entries]
        began = time.perf_counter()
        for name in names:
            blobs.read(name)
        read = time.perf_counter() - began
        began = time.perf_counter()
        state = PartitionState(run.config.parameters())
        state.restore(one_ahead(load(states, blobs.read)), alone, epoch)
        restore = time.perf_counter() - began - read
    edges = float(state.edges)
    del state
    start = _start_seconds(store)
    answers: list[Mapping[str, Any]] = []
    began_at = time.time()
    resume("bench", store, progress=answers.append)
    # The first new answer may be of an epoch that had been answered before the crash, but not committed.
    total = answers[0]["published_at"] - began_at
    replay = answers[0]["online_ms"] / 1e3 * (answers[0]["epoch"] - committed)
    return {"edges": edges, "total": total, "start": start, "read": read, "restore": restore, "replay": replay}


def _run_and_kill(path: Path, store: str, options: argparse.Namespace) -> None:
    """Run until most of the stream is committed, then kill the owner and with it all it started."""
    program = (
        "import sys; from graph_stream import Pipeline; "
        "options = {'epoch_edges': int(sys.argv[3]), 'threads': int(sys.argv[4])}; "
        "Pipeline(sys.argv[1], **options).run(run_id='bench', store=sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(path), store, str(RECOVERY_EPOCH_EDGES), str(options.threads)]
    wanted = int(0.8 * options.recovery_edges / RECOVERY_EPOCH_EDGES)
    with subprocess.Popen(command, start_new_session=True) as process:
        while _committed(store) < wanted:
            if process.poll() is not None:
                message = "the run ended before it could be killed"
                raise AssertionError(message)
            time.sleep(0.5)
        process.kill()


def _committed(store: str) -> int:
    try:
        return open_run("bench", store).newest
    except exoflow.WorkflowNotFound:
        return 0


def _start_seconds(store: str) -> float:
    """Return how long actors take to start: a run of one tiny epoch, from the call to its answer."""
    began = time.time()
    with tempfile.TemporaryDirectory(dir=Path(store).parent) as folder:
        done = whole_run(Path(folder), "rmat://?scale=4&edges=10&seed=1")
    return float(done.rows[0]["published_at"] - began)
