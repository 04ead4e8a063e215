"""How the online tier grows: speed and latency by size of the graph, bytes per edge, and sparse ids."""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
from measure import Goal, Side, interleaved, rates, show, show_goals, write
from online_runs import WholeRun, percentile, rmat_file, whole_run
from pyarrow import csv

from ingest.synthetic import Rmat

SIZES = (1_000_000, 5_000_000)
FULL_SIZES = (20_000_000, 50_000_000)
EPOCH_EDGES = 100_000
EDGES_PER_VERTEX = 5
STEADY_SHARE = 0.2
SPARSE_BASE, SPARSE_BITS, SPARSE_FACTOR = 10**18, 62, 0x9E3779B97F4A7C15
"""A sparse id is the base plus an odd multiple of the dense one modulo 2**62: 19 digits, and no two alike."""


@dataclasses.dataclass(frozen=True)
class _Grown:
    run: WholeRun
    steady: float
    """Resident bytes of the processes that hold the graph: the median of the last epochs."""
    peak: int


def growth(folder: Path, options: argparse.Namespace) -> None:
    """Measure speed, tail and memory at several sizes of the graph."""
    empty = _grown(folder, options, 1_000, 10, 1_000)
    rows: list[dict[str, object]] = []
    print(f"\n## Growth: R-MAT, async, epochs of {EPOCH_EDGES:,}, {options.threads} threads\n")
    print("| records | edges kept | edges/s | p50 ms | p99 ms | bytes/edge steady | at peak |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    goals = []
    for records in (*SIZES, *(FULL_SIZES if options.full else ())):
        scale = round(math.log2(records / EDGES_PER_VERTEX))
        grown = _grown(folder, options, records, scale, EPOCH_EDGES)
        kept = int(grown.run.rows[-1]["edges"])
        # From the start of the computation, not from the scheduled close: unpaced epochs wait for each other.
        latency = np.array([row["online_ms"] + row["publish_ms"] for row in grown.run.rows])
        steady, peak = grown.steady - empty.steady, grown.peak - empty.peak
        row = {
            "records": records,
            "edges": kept,
            "edges_per_second": grown.run.edges_per_second,
            "p50_ms": percentile(latency, 0.5),
            "p99_ms": percentile(latency, 0.99),
            "steady_bytes_per_edge": steady / kept,
            "peak_bytes_per_edge": peak / kept,
        }
        rows.append(row)
        print(
            f"| {records:,} | {kept:,} | {row['edges_per_second']:,.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | "
            f"{row['steady_bytes_per_edge']:.1f} | {row['peak_bytes_per_edge']:.1f} |",
            flush=True,
        )
        goals = [
            Goal(f"bytes per edge, steady, {records:,} records", steady / kept, at_most=24),
            Goal(f"bytes per edge, at peak, {records:,} records", peak / kept, at_most=32),
        ]
    show_goals(goals)
    write(options.out / "growth.parquet", rows)


def _grown(folder: Path, options: argparse.Namespace, records: int, scale: int, epoch_edges: int) -> _Grown:
    run = whole_run(
        folder,
        f"rmat://?scale={scale}&edges={records}&seed=1",
        checkpoint="async",
        epoch_edges=epoch_edges,
        threads=options.threads,
    )
    last = run.rows[-max(1, int(STEADY_SHARE * len(run.rows))) :]
    steady = statistics.median(row["memory_bytes"] for row in last)
    return _Grown(run, steady, max(row["peak_memory_bytes"] for row in run.rows))


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
