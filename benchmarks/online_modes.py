"""What a checkpoint mode costs: saturated, in an open loop below the maximum, and on a slow store."""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from measure import Goal, Side, interleaved, rates, show, show_goals, write
from online_runs import WholeRun, percentile, rmat_file, whole_run
from slow_store import SlowStore

from exoflow.storage import open_store

MODES = ("none", "async", "sync")
DELAYS_MS = (0.0, 20.0, 100.0)
LOAD = 0.6
WARMUP_SHARE = 0.1
SLOW_EPOCHS = 30
SLOW_EPOCH_EDGES = 1_000
"""So few that a delta lies in the record that commits it."""
SLOW_EPOCH_SECONDS = 0.8
STORE_REQUESTS = 20


def modes(folder: Path, options: argparse.Namespace) -> None:
    """Compare none, async and sync: saturated with large epochs and with those of the default size, then paced."""
    edges = options.mode_epochs * options.mode_epoch_edges
    large = _saturated(folder, options, edges, options.epoch_edges)
    write(options.out / "modes_large_epochs.parquet", rates(large))
    figures = _saturated(folder, options, edges, options.mode_epoch_edges)
    write(options.out / "modes.parquet", rates(figures))

    rate = LOAD * statistics.median(figures["run none"])
    about = _about(options, edges, options.mode_epoch_edges)
    rows: list[dict[str, object]] = []
    for number in range(options.runs):
        for mode in MODES:
            done = _run(folder, options, mode, edges, options.mode_epoch_edges, rate)
            latency = done.latency_ms[int(WARMUP_SHARE * options.mode_epochs) :]
            row = {name: percentile(latency, share) for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99))}
            rows.append({"side": mode, "run": number + 1, "epochs": len(latency), "rate": rate, **row})
            print(f"open loop {number + 1}: {mode} p50 {row['p50_ms']:.1f} ms", file=sys.stderr, flush=True)
    print(f"\n## Modes, open loop at {LOAD:.0%} of the maximum of none ({rate:,.0f} edges/s): {about}\n")
    _show_latencies(rows)
    show_goals(
        [
            Goal("async p50 / none p50", _over(rows, "p50_ms", "async"), at_most=1.05),
            Goal("async p99 / none p99", _over(rows, "p99_ms", "async"), at_most=1.5),
        ]
    )
    write(options.out / "modes_open_loop.parquet", rows)
    _slow_stores(folder, options)


def _run(
    folder: Path, options: argparse.Namespace, mode: str, edges: int, epoch_edges: int, rate: float | None = None
) -> WholeRun:
    path = rmat_file(folder, options.mode_scale, edges)
    return whole_run(
        folder,
        str(path),
        checkpoint=mode,
        epoch_edges=epoch_edges,
        threads=options.threads,
        rate=rate,
        keep_epochs=edges // epoch_edges,
    )


def _saturated(folder: Path, options: argparse.Namespace, edges: int, epoch_edges: int) -> dict[str, list[float]]:
    sides = {
        f"run {mode}": Side(
            lambda mode=mode: _run(folder, options, mode, edges, epoch_edges).edges_per_second,  # type: ignore[misc]
            "run none",
        )
        for mode in MODES
    }
    figures = interleaved(sides, options.runs)
    show(f"Modes, saturated: {_about(options, edges, epoch_edges)}", "edges/s", sides, figures)
    ratio = statistics.median(a / n for a, n in zip(figures["run async"], figures["run none"], strict=True))
    show_goals([Goal(f"async / none, saturated, epochs of {epoch_edges:,}", ratio, at_least=0.88)])
    return figures


def _about(options: argparse.Namespace, edges: int, epoch_edges: int) -> str:
    return f"R-MAT scale {options.mode_scale}, {edges // epoch_edges:,} epochs of {epoch_edges:,}"


def _show_latencies(rows: list[dict[str, object]]) -> None:
    print("| mode | p50 ms, median | min | max | p99 ms, median | min | max |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for mode in MODES:
        cells = []
        for name in ("p50_ms", "p99_ms"):
            values = _values(rows, name, mode)
            cells += [f"{value:.1f}" for value in (statistics.median(values), min(values), max(values))]
        print(f"| {mode} | {' | '.join(cells)} |")


def _values(rows: list[dict[str, object]], name: str, mode: str) -> list[float]:
    return [float(str(row[name])) for row in rows if row["side"] == mode]


def _over(rows: list[dict[str, object]], name: str, mode: str) -> float:
    pairs = zip(_values(rows, name, mode), _values(rows, name, "none"), strict=True)
    return statistics.median(mine / its for mine, its in pairs)


# --- a slow store -----------------------------------------------------------------------------------------


def _slow_stores(folder: Path, options: argparse.Namespace) -> None:
    """Show that sync adds the store's latency to none, and async nothing."""
    upstream = os.environ.get("AWS_ENDPOINT_URL")
    if not upstream:
        print("\nNo S3 server: `make services-up` says how to name one; the slow store is not measured.")
        return
    bucket = os.environ.get("EXOFLOW_BENCH_BUCKET", "exoflow")
    rows: list[dict[str, object]] = []
    print(f"\n## Modes on a slow store: S3, each request delayed; {SLOW_EPOCHS} epochs\n")
    print("| epoch | delay ms | one write, ms | none p50 | async p50 | sync p50 | (sync - none) / write |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for epoch_edges, delay_ms in itertools.product((SLOW_EPOCH_EDGES, options.mode_epoch_edges), DELAYS_MS):
        path = rmat_file(folder, options.mode_scale, SLOW_EPOCHS * epoch_edges)
        with SlowStore(upstream, delay_ms=delay_ms) as slow:
            prefix = f"s3://{bucket}/bench-{os.getpid()}-{epoch_edges}-{delay_ms:g}"
            write_ms = _write_ms(f"{prefix}/probe?endpoint={slow.endpoint}")
            found: dict[str, float] = {}
            for mode in MODES:
                done = whole_run(
                    folder,
                    str(path),
                    store=f"{prefix}/{mode}?endpoint={slow.endpoint}",
                    checkpoint=mode,
                    epoch_edges=epoch_edges,
                    threads=options.threads,
                    rate=epoch_edges / SLOW_EPOCH_SECONDS,
                )
                found[mode] = percentile(done.latency_ms[SLOW_EPOCHS // 3 :], 0.5)
                at = {"epoch_edges": epoch_edges, "delay_ms": delay_ms, "write_ms": write_ms}
                rows.append({"side": mode, **at, "p50_ms": found[mode]})
        writes = (found["sync"] - found["none"]) / write_ms
        cells = " | ".join(f"{found[mode]:.1f}" for mode in MODES)
        print(f"| {epoch_edges:,} | {delay_ms:g} | {write_ms:.1f} | {cells} | {writes:.2f} |", flush=True)
    write(options.out / "modes_slow_store.parquet", rows)


def _write_ms(uri: str) -> float:
    """Return how long one conditional write of a few bytes takes, in milliseconds."""
    store = open_store(uri)
    times = []
    for number in range(STORE_REQUESTS):
        began = time.perf_counter()
        store.put_if_absent(f"write/{number}", b"x" * 600)
        times.append((time.perf_counter() - began) * 1e3)
    return float(np.median(times))
