"""The online tier beside the reference kernel, as ratios measured in the same run: `make bench`.

A whole run from text file to last answer, in the three modes, against the kernel alone: one thread, in
memory, the same rounds, tolerance and epochs, no ingest and no checkpoints.

Interleaved runs; medians and ranges. Writes results/bench/online.parquet. What loses is printed too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import ray
from measure import Side, interleaved, rates, show, write

from exoflow.cluster import ensure_ray
from graph_stream import Pipeline
from graph_stream.algorithms import Parameters
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState, warm_up
from graph_stream.rounds import alone
from graph_stream.runs import open_run
from ingest import EpochReader, open_source, write_rmat

MODES = ("none", "async", "sync")


def main() -> int:
    """Run the benchmarks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=int, default=18)
    parser.add_argument("--edges", type=int, default=2_000_000)
    parser.add_argument("--epoch-edges", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    options = parser.parse_args()
    ensure_ray(num_cpus=2, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="exoflow-bench-") as folder:
        sides = online_sides(Path(folder), options)
        figures = interleaved(sides, options.runs)
    show("Online tier: a whole run", "edges/s", sides, figures)
    write(options.out / "online.parquet", rates(figures))
    ray.shutdown()
    return 0


def online_sides(folder: Path, options: argparse.Namespace) -> dict[str, Side]:
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

    sides = {"reference kernel": Side(reference, "reference kernel")}
    for mode in MODES:
        sides[f"run {mode}"] = Side(lambda mode=mode: whole_run(mode), "reference kernel")  # type: ignore[misc]
    return sides


if __name__ == "__main__":
    sys.exit(main())
