"""How the benchmarks measure: all sides in turn, medians and ranges, ratios to a peer of the same run."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray


@dataclasses.dataclass(frozen=True)
class Side:
    """One thing measured: ``measure`` returns a rate per second, ``peer`` names the side it is divided by."""

    measure: Callable[[], float]
    peer: str


@dataclasses.dataclass(frozen=True)
class Goal:
    """A target, and what was measured; a value of nan was not measured."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the target is met."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


def show_goals(goals: Sequence[Goal]) -> None:
    """Print targets beside what was measured."""
    print("\n| target | measured | bound | holds |\n| --- | ---: | ---: | --- |")
    for goal in goals:
        bound = f">= {goal.at_least:g}" if goal.at_least is not None else f"<= {goal.at_most:g}"
        print(f"| {goal.name} | {goal.value:.3g} | {bound} | {'yes' if goal.holds else 'NO'} |", flush=True)


def interleaved(sides: Mapping[str, Side], runs: int) -> dict[str, list[float]]:
    """Measure all sides in turn, so that a change of the machine's speed meets all of them; the first turn warms up."""
    for side in sides.values():
        side.measure()
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs):
        for name, side in sides.items():
            figures[name].append(side.measure())
            print(f"run {number + 1}: {name} {figures[name][-1]:,.0f}/s", file=sys.stderr, flush=True)
    return figures


def show(title: str, unit: str, sides: Mapping[str, Side], figures: Mapping[str, list[float]]) -> None:
    """Print medians, ranges, and the median of the ratios to each side's peer in the same turn."""
    print(f"\n## {title}\n\n{environment()}\n")
    print(f"| side | {unit}, median | min | max | of | ratio |\n| --- | ---: | ---: | ---: | --- | ---: |")
    for name, values in figures.items():
        peer = sides[name].peer
        ratio = statistics.median(mine / its for mine, its in zip(values, figures[peer], strict=True))
        middle, least, most = statistics.median(values), min(values), max(values)
        print(f"| {name} | {middle:,.0f} | {least:,.0f} | {most:,.0f} | {peer} | {ratio:.2f} |")


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """Write figures as Parquet, one row each, with when and where they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{**row, "environment": environment()} for row in rows]), path)


def rates(figures: Mapping[str, list[float]]) -> list[dict[str, object]]:
    """Return one row per run and side."""
    return [
        {"side": name, "run": run, "per_second": value}
        for name, values in figures.items()
        for run, value in enumerate(values, 1)
    ]


def environment() -> str:
    """Return host, processor, cores, versions and date in one line."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{platform.node()}, {_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Ray {ray.__version__}, {day}"
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
