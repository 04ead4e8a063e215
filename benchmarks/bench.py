"""First figures, as ratios against peers measured in the same run: `make bench`.

1. Engine: no-op tasks, 1,000 wide and a chain of 300, in the three modes, against the same DAG in bare Ray.
2. Online tier: a whole run from text file to last answer, against the reference kernel: one thread, in
   memory, the same rounds, tolerance and epochs, no ingest and no checkpoints.

Five interleaved runs; medians and ranges. Writes results/bench/*.parquet. What loses is printed too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

import exoflow
from exoflow.executor import ensure_ray
from graph_stream import Pipeline
from graph_stream.algorithms import Parameters
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState, warm_up
from graph_stream.rounds import alone
from graph_stream.runs import open_run
from ingest import EpochReader, open_source, write_rmat

WIDE, CHAIN = 1_000, 300
MODES = ("none", "async", "sync")


@exoflow.task(deterministic=True, num_cpus=1)
def nothing(*_: Any) -> int:
    """Do nothing."""
    return 0


def main() -> int:
    """Run the benchmarks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=int, default=18)
    parser.add_argument("--edges", type=int, default=2_000_000)
    parser.add_argument("--epoch-edges", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ensure_ray(num_cpus=2, log_to_driver=False)
    engine = interleaved(engine_sides(), options.runs)
    show("Engine: tasks per second", engine, {"wide": "wide ray", "chain": "chain ray"}, options.out / "engine.parquet")
    with tempfile.TemporaryDirectory(prefix="exoflow-bench-") as folder:
        online = interleaved(online_sides(Path(folder), options), options.runs)
    show("Online tier: edges per second", online, {"run": "run reference"}, options.out / "online.parquet")
    ray.shutdown()
    return 0


def interleaved(sides: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Measure all sides in turn, so that a change of the machine's speed meets all of them."""
    for measure in sides.values():
        measure()
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs):
        for name, measure in sides.items():
            figures[name].append(measure())
            print(f"run {number + 1}: {name} {figures[name][-1]:,.0f}/s", file=sys.stderr, flush=True)
    return figures


def show(title: str, figures: dict[str, list[float]], peers: dict[str, str], out: Path) -> None:
    """Print medians, ranges and ratios to the peer of each kind, and write all figures."""
    print(f"\n## {title}\n\n| side | median | min | max | ratio to peer |\n| --- | ---: | ---: | ---: | ---: |")
    for name, values in figures.items():
        peer = figures[peers[name.split()[0]]]
        ratio = statistics.median(mine / its for mine, its in zip(values, peer, strict=True))
        middle, least, most = statistics.median(values), min(values), max(values)
        print(f"| {name} | {middle:,.0f} | {least:,.0f} | {most:,.0f} | {ratio:.2f} |")
    rows = [{"side": name, "per_second": value} for name, values in figures.items() for value in values]
    pq.write_table(pa.Table.from_pylist(rows), out)


# --- the engine against bare Ray --------------------------------------------------------------------------


def engine_sides() -> dict[str, Callable[[], float]]:
    """Return what to measure of the engine, by name."""
    sides: dict[str, Callable[[], float]] = {"wide ray": ray_wide, "chain ray": ray_chain}
    for mode in MODES:
        sides[f"wide {mode}"] = lambda mode=mode: engine(wide(mode), WIDE)  # type: ignore[misc]
        sides[f"chain {mode}"] = lambda mode=mode: engine(chain(mode), CHAIN)  # type: ignore[misc]
    return sides


@ray.remote(max_retries=0)
def _bare(*_: Any) -> int:
    return 0


def ray_wide() -> float:
    """Return tasks per second of a wide DAG in bare Ray."""
    began = time.perf_counter()
    ray.get(_bare.remote(*[_bare.remote() for _ in range(WIDE)]))
    return WIDE / (time.perf_counter() - began)


def ray_chain() -> float:
    """Return tasks per second of a chain in bare Ray."""
    began = time.perf_counter()
    reference = _bare.remote()
    for _ in range(CHAIN - 1):
        reference = _bare.remote(reference)
    ray.get(reference)
    return CHAIN / (time.perf_counter() - began)


def wide(mode: str) -> Any:
    """Return a DAG of many tasks side by side."""
    task = nothing.options(checkpoint=mode)
    return task.bind(*[task.bind() for _ in range(WIDE)])


def chain(mode: str) -> Any:
    """Return a DAG of tasks one after the other."""
    task = nothing.options(checkpoint=mode)
    node = task.bind()
    for _ in range(CHAIN - 1):
        node = task.bind(node)
    return node


def engine(node: Any, tasks: int) -> float:
    """Return tasks per second of a DAG in the engine, from the call of run to its result."""
    with tempfile.TemporaryDirectory(prefix="exoflow-bench-") as store:
        began = time.perf_counter()
        exoflow.run(node, workflow_id="bench", store=store)
        return tasks / (time.perf_counter() - began)


# --- the online tier against the reference kernel ---------------------------------------------------------


def online_sides(folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Return what to measure of the online tier, by name."""
    path = folder / "stream.txt"
    write_rmat(path, options.scale, options.edges, 1, 0.0)
    warm_up()
    hashes: set[str] = set()

    def reference() -> float:
        with EpochReader([open_source(str(path))], options.epoch_edges) as reader:
            position, batches = reader.start(), []
            while not batches or not batches[-1].last:
                batches.append(reader.read(position))
                position = batches[-1].end
        state = PartitionState(Parameters())
        began = time.perf_counter()
        for epoch, batch in enumerate(batches, 1):
            state.apply(epoch, batch.src, batch.dst, batch.op, alone)
        seconds = time.perf_counter() - began
        hashes.add(combine([state.result], Parameters()).state_hash)
        return options.edges / seconds

    def whole_run(mode: str) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as store:
            pipeline = Pipeline(str(path), checkpoint=mode, epoch_edges=options.epoch_edges, threads=1)
            pipeline.run(run_id="bench", store=store)
            rows = [entry["row"] for entry in open_run("bench", store).entries]
        hashes.add(rows[-1]["state_hash"])
        if len(hashes) != 1:
            message = f"the sides do not agree on the final state: {hashes}"
            raise AssertionError(message)
        return options.edges / (rows[-1]["published_at"] - rows[0]["read_started"])

    sides: dict[str, Callable[[], float]] = {"run reference": reference}
    for mode in MODES:
        sides[f"run {mode}"] = lambda mode=mode: whole_run(mode)  # type: ignore[misc]
    return sides


if __name__ == "__main__":
    sys.exit(main())
