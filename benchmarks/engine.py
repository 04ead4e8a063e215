"""The engine beside its peers, all in one run: `make bench-engine`.

1. No-op tasks, many side by side and a chain: bare Ray (the same DAG, references chained, one `get`), the
   engine in its three modes on a local store, and DBOS on SQLite and on PostgreSQL with their fsyncs on. A
   figure runs from the call to the result; stores and databases are open before, workflows are new.
2. A sync chain beside what the disk can do: one file appended and fsynced, and one object of the store.
3. Starting a loop of ten iterations and of ten thousand: time to the first output, bytes written before it.
4. The store after a hundred and after ten thousand iterations of a loop whose state keeps its size.

Writes results/engine/*.parquet. What loses is printed too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from measure import Side, environment, interleaved, rates, show, write
from postgres import private_postgres

import exoflow
from exoflow.cluster import ensure_ray
from exoflow.dag import Node
from exoflow.messages import Produced
from exoflow.records import Record
from exoflow.storage import LocalStore

WIDE, CHAIN = 1_000, 300
SHORT_LOOP, LONG_LOOP = 10, 10_000
FEW_ITERATIONS, MANY_ITERATIONS = 100, 10_000
DISK_WRITES = 300
RECORD_BYTES = 600  # About what one committed no-op task takes in the journal, header and checksum included.
MODES = ("none", "async", "sync")
_numbers = itertools.count(1)


@exoflow.task(deterministic=True, num_cpus=1)
def nothing(*_: Any) -> int:
    """Do nothing."""
    return 0


@exoflow.task(checkpoint="async", num_cpus=1)
def step(carry: int) -> int:
    """Hand the carry on."""
    return carry


@exoflow.task(checkpoint="async", num_cpus=1)
def last_step(carry: int) -> Any:
    """End the loop at once."""
    return exoflow.stop(carry)


def main() -> int:
    """Run the benchmarks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=2, help="CPU slots of the Ray that is started")
    parser.add_argument("--out", type=Path, default=Path("results/engine"))
    options = parser.parse_args()
    ensure_ray(num_cpus=options.cpus, log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="exoflow-bench-") as folder:
        store = f"{folder}/store"
        LocalStore(store)
        tasks(Path(folder), store, options)
        loops(Path(folder), options)
    ray.shutdown()
    return 0


# --- tasks ------------------------------------------------------------------------------------------------


def tasks(folder: Path, store: str, options: argparse.Namespace) -> None:
    """Measure no-op tasks on every side, and the disk."""
    sides = {"wide ray": Side(ray_wide, "wide ray"), "chain ray": Side(ray_chain, "chain ray")}
    for mode in MODES:
        sides[f"wide {mode}"] = Side(lambda mode=mode: engine(wide(mode), WIDE, store), "wide ray")  # type: ignore[misc]
        sides[f"chain {mode}"] = Side(lambda mode=mode: engine(chain(mode), CHAIN, store), "chain ray")  # type: ignore[misc]
    sides["disk append and fsync"] = Side(lambda: disk_appends(folder), "disk append and fsync")
    sides["disk store object"] = Side(lambda: store_objects(store), "disk append and fsync")
    with contextlib.ExitStack() as stack:
        for name, ask in peers(stack, folder).items():
            sides[f"wide {name}"] = Side(lambda ask=ask: ask("wide", WIDE), "wide ray")  # type: ignore[misc]
            sides[f"chain {name}"] = Side(lambda ask=ask: ask("chain", CHAIN), "chain ray")  # type: ignore[misc]
        figures = interleaved(sides, options.runs)
    show(f"Engine: no-op tasks, {WIDE:,} wide and a chain of {CHAIN}", "per second", sides, figures)
    durable = statistics.median(figures["wide sync"])
    for name in (name for name in figures if "dbos" in name and name.startswith("wide")):
        print(f"\nwide sync / {name}: {durable / statistics.median(figures[name]):.1f}")
    hops = statistics.median(figures["chain sync"]) / statistics.median(figures["disk append and fsync"])
    print(f"\nchain sync, hops per fsync of the disk: {hops:.2f}")
    write(options.out / "tasks.parquet", rates(figures))


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


def wide(mode: str) -> Node:
    """Return a DAG of many tasks side by side."""
    task = nothing.options(checkpoint=mode)
    return task.bind(*[task.bind() for _ in range(WIDE)])


def chain(mode: str) -> Node:
    """Return a DAG of tasks one after the other."""
    task = nothing.options(checkpoint=mode)
    node = task.bind()
    for _ in range(CHAIN - 1):
        node = task.bind(node)
    return node


def engine(node: Node, size: int, store: str) -> float:
    """Return tasks per second of a new workflow, from the call of run to its result."""
    began = time.perf_counter()
    exoflow.run(node, workflow_id=f"tasks-{next(_numbers)}", store=store)
    return size / (time.perf_counter() - began)


def disk_appends(folder: Path) -> float:
    """Return how often per second the disk makes an appended record durable."""
    record = b"x" * RECORD_BYTES
    with open(folder / "appended", "ab", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(DISK_WRITES):
            file.write(record)
            os.fsync(file.fileno())
        return DISK_WRITES / (time.perf_counter() - began)


def store_objects(store: str) -> float:
    """Return how many objects per second the store creates, each durable before the next."""
    target, name = LocalStore(store), f"objects-{next(_numbers)}"
    record = b"x" * RECORD_BYTES
    began = time.perf_counter()
    for number in range(DISK_WRITES):
        target.put_if_absent(f"{name}/{number:012d}", record)
    return DISK_WRITES / (time.perf_counter() - began)


# --- DBOS -------------------------------------------------------------------------------------------------


def peers(stack: contextlib.ExitStack, folder: Path) -> dict[str, Callable[[str, int], float]]:
    """Start DBOS on each database that is there; return what asks it for steps per second."""
    if importlib.util.find_spec("dbos") is None:
        print("DBOS is not installed: pip install --group bench", file=sys.stderr)
        return {}
    found = {"dbos sqlite": stack.enter_context(dbos(f"sqlite:///{folder}/dbos.sqlite"))}
    url = stack.enter_context(private_postgres())
    if url is None:
        print("PostgreSQL is not installed: DBOS is measured on SQLite alone", file=sys.stderr)
    else:
        found["dbos postgres"] = stack.enter_context(dbos(url))
    return found


@contextlib.contextmanager
def dbos(url: str) -> Iterator[Callable[[str, int], float]]:
    """Run DBOS in a process of its own for the time of the block."""
    command = [sys.executable, str(Path(__file__).with_name("dbos_steps.py")), url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def steps_per_second(shape: str, steps: int) -> float:
            print(shape, steps, file=asked, flush=True)
            return steps / float(answers.readline())

        yield steps_per_second
        asked.close()


# --- loops ------------------------------------------------------------------------------------------------


def loops(folder: Path, options: argparse.Namespace) -> None:
    """Measure what starting a loop costs, and what a long one leaves in the store."""
    print(f"\n## Loops\n\n{environment()}\n")
    rows: list[dict[str, object]] = []
    starts: dict[int, list[tuple[float, int]]] = {SHORT_LOOP: [], LONG_LOOP: []}
    for run in range(options.runs + 1):
        for iterations, figures in starts.items():
            seconds, size = loop_start(folder, iterations)
            if run > 0:
                figures.append((seconds, size))
                rows.append({"measure": "start", "iterations": iterations, "seconds": seconds, "bytes": size})
    print("| loop of | ms to the first output, median | min | max | bytes before it |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for iterations, figures in starts.items():
        times = [seconds * 1e3 for seconds, _ in figures]
        size = statistics.median(size for _, size in figures)
        middle = statistics.median(times)
        print(f"| {iterations:,} | {middle:.1f} | {min(times):.1f} | {max(times):.1f} | {size:,.0f} |")
    print("\n| iterations | iterations/s | bytes in the store | files |\n| ---: | ---: | ---: | ---: |")
    for iterations in (FEW_ITERATIONS, MANY_ITERATIONS):
        seconds, size, files = loop_whole(folder, iterations)
        rows.append({"measure": "whole", "iterations": iterations, "seconds": seconds, "bytes": size})
        print(f"| {iterations:,} | {iterations / seconds:,.0f} | {size:,} | {files} |")
    write(options.out / "loops.parquet", rows)


class FirstOutput:
    """Notes when a workflow's first output is there, and what the store holds then."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self.at = 0.0
        self.bytes = 0

    def produced(self, event: Produced) -> None:
        """Note the first output."""
        if not self.at:
            self.at = time.perf_counter()
            self.bytes = stored(self._store)[0]

    def committed(self, records: Sequence[Record], at: float) -> None:
        """Nothing: only the first output counts."""

    def told(self, actor: str, text: str) -> None:
        """Nothing: the actors here say nothing."""


def loop_start(folder: Path, iterations: int) -> tuple[float, int]:
    """Return seconds from the call to the first output, and the bytes that are stored by then."""
    store = folder / f"start-{next(_numbers)}"
    LocalStore(store)
    first = FirstOutput(store)
    node = exoflow.loop(lambda carry, i: last_step.bind(carry), 0, iterations=iterations)
    began = time.perf_counter()
    exoflow.run(node, workflow_id="loop", store=str(store), observer=first)
    return first.at - began, first.bytes


def loop_whole(folder: Path, iterations: int) -> tuple[float, int, int]:
    """Return seconds of a whole loop, and bytes and files that it leaves."""
    store = folder / f"whole-{next(_numbers)}"
    LocalStore(store)
    node = exoflow.loop(lambda carry, i: step.bind(carry), 0, iterations=iterations)
    began = time.perf_counter()
    exoflow.run(node, workflow_id="loop", store=str(store))
    return time.perf_counter() - began, *stored(store)


def stored(store: Path) -> tuple[int, int]:
    """Return bytes and number of the files of the workflows in a store."""
    sizes = [path.stat().st_size for path in (store / "workflows").rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


if __name__ == "__main__":
    sys.exit(main())
