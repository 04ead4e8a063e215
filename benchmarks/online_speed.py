"""Throughput of a whole run and latency of small epochs, beside the reference kernel and the plain way."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from measure import Goal, Side, interleaved, rates, show, show_goals, write
from online_runs import Milliseconds, batches_of, paced_tail, percentile, rmat_file, whole_run
from reference import PlainRanking, ReferenceKernel, check, fingerprint

from graph_stream.algorithms import Parameters
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState, warm_up
from graph_stream.rounds import alone
from ingest import EpochBatch

ROOM_PER_EDGE = 8
"""Row entries the reference kernel reserves per record: twice what its sets and outgrown rows can take."""


SMALL_WARM_UP_SECONDS = 5.0
"""Starting again takes a while, and the epochs that wait for it are no measure."""


class Disagreement(AssertionError):
    """Two sides did not end in the same state, so their speeds do not compare."""


class _States:
    """The final states of the sides of one stream, which must all be one."""

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}

    def add(self, side: str, state_hash: str) -> None:
        self._hashes[side] = state_hash
        if len(set(self._hashes.values())) > 1:
            message = f"the sides do not agree on the final state: {self._hashes}"
            raise Disagreement(message)


# --- throughput -------------------------------------------------------------------------------------------


def throughput(folder: Path, options: argparse.Namespace) -> None:
    """Measure whole runs from text file to last answer."""
    parameters = Parameters(retweet_probability=0.00037, tolerance=1e-3)
    path = rmat_file(folder, options.scale, options.edges)
    batches = batches_of(str(path), options.epoch_edges)
    states = _States()
    warm_up()

    def reference() -> float:
        kernel = ReferenceKernel(parameters, 1 << options.scale, ROOM_PER_EDGE * options.edges)
        seconds = _timed(lambda: [kernel.apply(batch.src, batch.dst, batch.op) for batch in batches])
        answer = kernel.answer()
        check(answer, parameters)
        states.add("reference", fingerprint(answer, parameters))
        return float(options.edges / seconds)

    def state_alone() -> float:
        state = PartitionState(parameters)
        seconds = _timed(lambda: _apply_all(state, batches))
        states.add("state alone", combine([state.result], parameters).state_hash)
        return float(options.edges / seconds)

    def run(mode: str, threads: int) -> float:
        done = whole_run(
            folder, str(path), checkpoint=mode, epoch_edges=options.epoch_edges, threads=threads, tolerance=1e-3
        )
        states.add(f"run {mode}", done.state_hash)
        return done.edges_per_second

    sides = {
        "reference kernel": Side(reference, "reference kernel"),
        "state alone": Side(state_alone, "reference kernel"),
    }
    for mode in ("none", "async", "sync"):
        sides[f"run {mode}"] = Side(lambda mode=mode: run(mode, options.threads), "reference kernel")  # type: ignore[misc]
    figures = interleaved(sides, options.runs)
    # Measured once: a run takes minutes, and its range does not decide anything.
    plain = float("nan") if options.without_plain else _plain(parameters, batches, states)
    figures["plain Python, once"] = [plain] * options.runs
    sides["plain Python, once"] = Side(lambda: plain, "reference kernel")
    title = f"Throughput: R-MAT scale {options.scale}, {options.edges:,} edges, epochs of {options.epoch_edges:,}"
    show(f"{title}, {options.threads} threads", "edges/s", sides, figures)
    ratio = _ratio(figures["run async"], figures["reference kernel"])
    over_plain = _ratio(figures["run async"], figures["plain Python, once"])
    show_goals(
        [
            Goal("run async / reference kernel", ratio, at_least=0.6),
            Goal("run async / reference kernel, the aim", ratio, at_least=1.0),
            Goal("run async / plain Python", over_plain, at_least=20.0),
            Goal("run async / run none", _ratio(figures["run async"], figures["run none"]), at_least=0.88),
        ]
    )
    write(options.out / "throughput.parquet", rates(figures))


def _timed(work: object) -> float:
    gc.collect()
    began = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - began


def _apply_all(state: PartitionState, batches: list[EpochBatch]) -> None:
    for epoch, batch in enumerate(batches, 1):
        state.apply(epoch, batch.src, batch.dst, batch.op, alone)


def _plain(parameters: Parameters, batches: list[EpochBatch], states: _States) -> float:
    plain = PlainRanking(parameters)
    seconds = 0.0
    for batch in batches:
        records = list(zip(batch.src.tolist(), batch.dst.tolist(), batch.op.tolist(), strict=True))
        began = time.perf_counter()
        plain.apply(records)
        seconds += time.perf_counter() - began
    states.add("plain Python", fingerprint(plain.answer(), parameters))
    return sum(len(batch.src) for batch in batches) / seconds


def _ratio(mine: list[float], its: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(mine, its, strict=True))


# --- small epochs -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Small:
    """Latencies of the measured epochs, the newest of the stream."""

    latency_ms: Milliseconds

    @property
    def p50(self) -> float:
        return percentile(self.latency_ms, 0.5)

    @property
    def p99(self) -> float:
        return percentile(self.latency_ms, 0.99)


def small(folder: Path, options: argparse.Namespace) -> None:
    """Measure epochs of 1,000 on a large graph: paced, so that an epoch does not wait for the one before.

    Only the newest are; the graph before them is made as fast as it goes.
    """
    parameters = Parameters(retweet_probability=0.5, tolerance=1e-3)
    path = rmat_file(folder, options.small_scale, options.small_edges)
    batches = batches_of(str(path), 1_000)
    measured = min(options.small_measured, len(batches) // 2)
    states = _States()

    def kernel() -> ReferenceKernel:
        return ReferenceKernel(parameters, 1 << options.small_scale, ROOM_PER_EDGE * options.small_edges)

    def reference() -> _Small:
        kept = kernel()
        times = [_timed_one(kept, batch) for batch in batches]
        answer = kept.answer()
        check(answer, parameters)
        states.add("reference", fingerprint(answer, parameters))
        return _Small(np.array(times[-measured:]))

    def run(rate: float) -> _Small:
        done = paced_tail(
            folder,
            str(path),
            epochs=max(1, len(batches) - measured - math.ceil(SMALL_WARM_UP_SECONDS * rate / 1_000)),
            rate=rate,
            epoch_edges=1_000,
            threads=options.threads,
            retweet_probability=0.5,
            tolerance=1e-3,
        )
        states.add("run async", done.state_hash)
        return _Small(done.latency_ms[-measured:])

    found: dict[str, list[_Small]] = {"reference kernel": [], "run async": []}
    _timed_one(kernel(), batches[0])  # compiles
    for number in range(options.small_runs):
        found["reference kernel"].append(reference())
        found["run async"].append(run(options.small_load * 1e6 / found["reference kernel"][-1].p50))
        shown = {name: round(values[-1].p50, 2) for name, values in found.items()}
        print(f"run {number + 1}: p50 in ms {shown}", file=sys.stderr, flush=True)
    print(
        f"\n## Epochs of 1,000 on {options.small_edges:,} edges, p = 0.5, paced at {options.small_load:.0%} of the "
        "reference kernel's rate\n"
    )
    print("| side | p50 ms, median | min | max | p99 ms, median | p50 over reference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    rows: list[dict[str, object]] = []
    for name, values in found.items():
        p50 = [value.p50 for value in values]
        over = _ratio(p50, [value.p50 for value in found["reference kernel"]])
        p99 = statistics.median(value.p99 for value in values)
        print(f"| {name} | {statistics.median(p50):.2f} | {min(p50):.2f} | {max(p50):.2f} | {p99:.2f} | {over:.2f} |")
        rows += [
            {"side": name, "run": run, "p50_ms": value.p50, "p99_ms": value.p99} for run, value in enumerate(values, 1)
        ]
    show_goals([Goal("run async p50 / reference kernel p50", over, at_most=2.0)])
    write(options.out / "small.parquet", rows)


def _timed_one(kernel: ReferenceKernel, batch: EpochBatch) -> float:
    began = time.perf_counter()
    kernel.apply(batch.src, batch.dst, batch.op)
    return (time.perf_counter() - began) * 1e3
