"""A long run near its limit that is killed again and again: it stays flat, and ends as if nothing had happened.

The stream is paced at four fifths of the most this machine sustains, which is measured first. Again and again
everything is killed at once, or only the driver, or one worker; the run is resumed where its driver died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from graph_stream import runs
from graph_stream.config import RunConfig
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState
from graph_stream.rounds import alone
from ingest import EpochReader, open_source
from spark.session import JavaMissing, require_java
from tests.fault.command import Command, graph_stream
from tests.fault.crashes import published

EPOCH_EDGES = 10_000
LOAD = 0.8
MEASURED_SECONDS = 15.0
# A new life that shows no progress for so long has failed.
PATIENCE_SECONDS = 90.0
# Starting up takes and gives back memory of its own.
SETTLED_SECONDS = 8.0
FLAT_SHARE = 1.15


@dataclasses.dataclass(frozen=True)
class Sample:
    """Memory of a run at one moment."""

    seconds: float
    """Since the soak began."""
    settled: bool
    """Whether nothing was killed and started shortly before."""
    mib: float


class Soak:
    """One run, its lives, and what was seen of them.

    Parameters
    ----------
    options : list
        Of ``graph-stream run``.
    store : Path
        The store in them.
    calm_seconds : pair of float
        Shortest and longest time between two kills.
    seed : int
        Of the times and the victims.
    """

    def __init__(self, options: list[object], store: Path, calm_seconds: tuple[float, float], seed: int) -> None:
        self._options, self._store = options, store
        self._calm_seconds = calm_seconds
        self._random = random.Random(seed)
        strikes = [self._kill_everything, self._kill_driver, self._kill_worker]
        self._random.shuffle(strikes)
        self._strikes = itertools.cycle(strikes)
        self._began = self._struck = time.monotonic()
        self.samples: list[Sample] = []
        self.deeds: list[str] = []

    def run(self) -> None:
        """Start the run, and bring it to its end through all that happens to it."""
        ended = self._live("run", *self._options)
        while not ended:
            ended = self._live("resume", "--run-id", "soak", "--store", self._store, "--json")

    def _live(self, *arguments: object) -> bool:
        """Run a command until it ends well, or is killed; return whether it has ended."""
        with Command(*arguments, terminal=True) as command:
            self._struck = time.monotonic()
            while True:
                before = published(command)
                self._watch(command, PATIENCE_SECONDS, until_past=before)
                self._watch(command, self._random.uniform(*self._calm_seconds))
                if command.process.poll() is not None:
                    command.end().checked()
                    return True
                next(self._strikes)(command)
                self._struck = time.monotonic()
                if command.process.poll() is not None:
                    command.until_nothing_is_left()
                    return False

    def _watch(self, command: Command, seconds: float, until_past: int | None = None) -> None:
        """Take samples for a time, or until an epoch after the given one is out, which has to happen in it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and command.process.poll() is None:
            if until_past is not None and published(command) > until_past:
                return
            now = time.monotonic()
            settled = now - self._struck > SETTLED_SECONDS
            self.samples.append(Sample(now - self._began, settled, memory_mib(command)))
            time.sleep(1.0)
        assert until_past is None or command.process.poll() is not None, f"no progress: {command.told[-2000:]}"

    def _kill_everything(self, command: Command) -> None:
        self.deeds.append("everything")
        command.kill()

    def _kill_driver(self, command: Command) -> None:
        self.deeds.append("driver")
        command.kill_driver()

    def _kill_worker(self, command: Command) -> None:
        if found := list(workers(command)):
            self.deeds.append("worker")
            with contextlib.suppress(psutil.NoSuchProcess):
                self._random.choice(found).kill()


def workers(command: Command) -> Iterator[psutil.Process]:
    """Yield the processes in which the run's actors and tasks are; Ray's own agents have such names, too."""
    for process in command.tree():
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline()).strip()
            if title.startswith("ray::") and not title.endswith(("Agent", "IDLE")):
                yield process


def memory_mib(command: Command) -> float:
    """Return what a run's processes hold together, a page of several in equal parts.

    Pages of files are left out: those of libraries count less while anything else on the machine uses them.
    """
    kib = 0
    for process in command.tree():
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            kib += sum(map(int, re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB$", rollup, re.MULTILINE)))
    return kib / 1024


def options(run_id: str, store: Path, source: str, *more: object) -> list[object]:
    return [
        *("--run-id", run_id, "--store", store, "--source", source, "--columns", "src,dst,op"),
        *("--epoch-edges", EPOCH_EDGES, *more, "--json"),
    ]


def most_sustained(store: Path, source: str) -> tuple[float, list[str]]:
    """Return the records per second of an unpaced run once it is warm, and the state hashes of its epochs."""
    with Command("run", *options("unpaced", store, source), terminal=True) as command:
        command.until(lambda: published(command) > 0)
        time.sleep(MEASURED_SECONDS)
        command.interrupt(group=False)
        assert command.end().code == 130
    rows = [entry["row"] for entry in runs.open_run("unpaced", str(store)).entries]
    first, last = rows[len(rows) // 2], rows[-1]
    rate = (last["total_records"] - first["total_records"]) / (last["published_at"] - first["published_at"])
    return rate, [row["state_hash"] for row in rows]


def undisturbed(source: str, epochs: int) -> list[str]:
    """Return the state hashes of a run without an engine, in this process."""
    config = RunConfig((source,), columns="src,dst,op", epoch_edges=EPOCH_EDGES)
    (parameters,) = config.parameters()
    state = PartitionState(parameters)
    hashes = []
    with EpochReader([open_source(source, config.columns)], EPOCH_EDGES) as reader:
        position = reader.start()
        for epoch in range(1, epochs + 1):
            batch = reader.read(position)
            position = batch.end
            summary = combine([state.apply(epoch, batch.src, batch.dst, batch.op, alone)], parameters)
            hashes.append(summary.state_hash)
    return hashes


def assert_flat(samples: list[Sample]) -> None:
    """Assert that a run holds no more memory in its last third than in the one before; the first is warm-up."""
    settled = [each.mib for each in samples if each.settled]
    third = len(settled) // 3
    middle, last = settled[third : 2 * third], settled[2 * third :]
    assert statistics.median(last) <= FLAT_SHARE * statistics.median(middle)
    assert max(last) <= FLAT_SHARE * max(middle)


@pytest.mark.java
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(
    ("seconds", "calm_seconds"),
    [
        pytest.param(120.0, (10.0, 30.0), id="short"),
        pytest.param(1800.0, (60.0, 180.0), id="long", marks=pytest.mark.soak),
    ],
)
def test_a_run_near_its_limit_outlasts_any_number_of_kills(seconds, calm_seconds, tmp_path):
    try:
        require_java()
    except JavaMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    seed = int(os.environ.get("EXOFLOW_SEED", time.time()))
    # Few vertices, and nearly as many deletes as inserts: the graph itself soon stops growing.
    source = f"rmat://?scale=9&edges={10**12}&seed={seed % 1000}&deletes=0.45"
    most, unpaced = most_sustained(tmp_path / "unpaced", source)
    epochs = int(LOAD * most * seconds / EPOCH_EDGES)
    print(f"EXOFLOW_SEED={seed}: {most:,.0f} records/s sustained, {epochs} epochs at {LOAD:.0%} of that")

    store = tmp_path / "store"
    paced = options("soak", store, source, "--rate", LOAD * most, "--epochs", epochs)
    soak = Soak(paced, store, calm_seconds, seed)
    try:
        soak.run()
    finally:
        report = " ".join(f"{each.seconds:.0f}:{each.mib:.0f}{'' if each.settled else '*'}" for each in soak.samples)
        print(f"killed {', '.join(soak.deeds)}; MiB by second: {report}")

    hashes = [entry["row"]["state_hash"] for entry in runs.open_run("soak", str(store)).entries]
    expected = undisturbed(source, epochs)
    assert len(soak.deeds) >= 3
    assert len(hashes) == epochs
    assert hashes == expected
    assert unpaced == expected[: len(unpaced)]
    audit = graph_stream("audit", "--run-id", "soak", "--store", store, "--json").checked()
    assert audit.result["within_bound"]
    assert audit.result["epoch"] == epochs
    assert_flat(soak.samples)
