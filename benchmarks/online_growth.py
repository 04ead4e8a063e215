"""How the online tier grows: speed and latency by size of the graph, bytes per edge, and sparse ids."""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measure import Goal, Side, interleaved, rates, show, show_goals, write
from online_runs import WholeRun, percentile, rmat_file, whole_run
from pyarrow import csv
from pyarrow import parquet as pq

from ingest.synthetic import Rmat

SIZES = (1_000_000, 5_000_000)
FULL_SIZES = (20_000_000, 50_000_000)
EPOCH_EDGES = 100_000
EDGES_PER_VERTEX = 5
STEADY_SHARE = 0.2
WRITTEN_RECORDS = 1_000_000
SPARSE_BASE, SPARSE_BITS, SPARSE_FACTOR = 10**18, 62, 0x9E3779B97F4A7C15
"""A sparse id is the base plus an odd multiple of the dense one modulo 2**62: 19 digits, and no two alike."""


@dataclasses.dataclass(frozen=True)
class _Grown:
    run: WholeRun
    steady: float
    """Resident bytes of the processes that hold the graph: the median of the last epochs."""
    peak: int


def growth(folder: Path, options: argparse.Namespace) -> None:
    """Measure speed, tail and memory at several sizes of the graph, at the largest also with windows."""
    empty = _grown(folder, options, "rmat://?scale=10&edges=1000", epoch_edges=1_000)
    print(f"\n## Growth: R-MAT, async, epochs of {EPOCH_EDGES:,}, {options.threads} threads\n")
    print("| records | edges kept | edges/s | p50 ms | p99 ms | bytes/edge steady | at peak |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows: list[dict[str, object]] = []
    sizes = (*SIZES, *(FULL_SIZES if options.full else ()))
    for records in sizes:
        row, goals = _row(_grown(folder, options, f"rmat://?{_parameters(records)}"), empty, "", (24, 32))
        rows.append(row)
    if options.full:
        # No edge expires, so that all of them have a time, and every vertex is in the wheel.
        grown = _grown(folder, options, str(_timed_file(folder, sizes[-1])), columns="src,dst,time", window=1e9)
        row, more = _row(grown, empty, " with windows", (48, 48))
        rows.append(row)
        goals += more
    show_goals(goals)
    write(options.out / "growth.parquet", rows)


def _row(grown: _Grown, empty: _Grown, how: str, most: tuple[float, float]) -> tuple[dict[str, object], list[Goal]]:
    """Print a row; return it, and its goals: at most so many bytes an edge, steady and at the peak."""
    last = grown.run.rows[-1]
    records, edges = int(last["total_records"]), int(last["edges"])
    # From the start of the computation, not from the scheduled close: unpaced epochs wait for each other.
    latency = np.array([row["online_ms"] + row["publish_ms"] for row in grown.run.rows])
    p50_ms, p99_ms = percentile(latency, 0.5), percentile(latency, 0.99)
    steady, peak = (grown.steady - empty.steady) / edges, (grown.peak - empty.peak) / edges
    print(
        f"| {records:,}{how} | {edges:,} | {grown.run.edges_per_second:,.0f} | {p50_ms:.1f} | {p99_ms:.1f} | "
        f"{steady:.1f} | {peak:.1f} |",
        flush=True,
    )
    row: dict[str, object] = {
        "records": records,
        "windows": bool(how),
        "edges": edges,
        "edges_per_second": grown.run.edges_per_second,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "steady_bytes_per_edge": steady,
        "peak_bytes_per_edge": peak,
    }
    return row, [
        Goal(f"bytes per edge, steady, {records:,} records{how}", steady, at_most=most[0]),
        Goal(f"bytes per edge, at peak, {records:,} records{how}", peak, at_most=most[1]),
    ]


def _grown(
    folder: Path, options: argparse.Namespace, source: str, epoch_edges: int = EPOCH_EDGES, **more: Any
) -> _Grown:
    run = whole_run(folder, source, checkpoint="async", epoch_edges=epoch_edges, threads=options.threads, **more)
    last = run.rows[-max(1, int(STEADY_SHARE * len(run.rows))) :]
    steady = statistics.median(row["memory_bytes"] for row in last)
    return _Grown(run, steady, max(row["peak_memory_bytes"] for row in run.rows))


def _scale(records: int) -> int:
    return round(math.log2(records / EDGES_PER_VERTEX))


def _parameters(records: int) -> str:
    return f"scale={_scale(records)}&edges={records}&seed=1"


def _timed_file(folder: Path, records: int) -> Path:
    """Write the stream of that many records as Parquet, with a time that goes on by a second each."""
    path = folder / "timed.parquet"
    stream = Rmat(_scale(records), records, 1)
    schema = pa.schema([(name, pa.int64()) for name in ("src", "dst", "time")])
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, records, WRITTEN_RECORDS):
            end = min(begin + WRITTEN_RECORDS, records)
            part = stream.records(begin, end)
            writer.write_table(pa.table([part.src, part.dst, np.arange(begin, end)], schema=schema))
    return path


def sparse(folder: Path, options: argparse.Namespace) -> None:
    """Compare ids of 19 digits, spread over all of them, with dense ones."""
    dense_path = rmat_file(folder, options.scale, options.sparse_edges)
    sparse_path = folder / "sparse.txt"
    records = Rmat(options.scale, options.sparse_edges, 1).records(0, options.sparse_edges)
    table = pa.table([_sparse(records.src), _sparse(records.dst)], names=["src", "dst"])
    csv.write_csv(table, sparse_path, csv.WriteOptions(include_header=False, delimiter="\t"))

    def run(path: Path) -> float:
        done = whole_run(folder, str(path), epoch_edges=EPOCH_EDGES, threads=options.threads)
        return done.edges_per_second

    sides = {
        "dense ids": Side(lambda: run(dense_path), "dense ids"),
        "sparse ids": Side(lambda: run(sparse_path), "dense ids"),
    }
    figures = interleaved(sides, options.runs)
    show(f"Ids: {options.sparse_edges:,} edges, async, epochs of {EPOCH_EDGES:,}", "edges/s", sides, figures)
    pairs = zip(figures["sparse ids"], figures["dense ids"], strict=True)
    show_goals([Goal("sparse / dense ids", statistics.median(one / other for one, other in pairs), at_least=0.8)])
    write(options.out / "sparse.parquet", rates(figures))


def _sparse(ids: np.ndarray) -> np.ndarray:
    spread = ids.astype(np.uint64) * np.uint64(SPARSE_FACTOR) & np.uint64((1 << SPARSE_BITS) - 1)
    return (spread + np.uint64(SPARSE_BASE)).astype(np.int64)
