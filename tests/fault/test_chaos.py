"""Kill and stop everything at random while workflows run: each ends right, and each effect counts once.

Victims are drivers with all they started, single workers and actors, and the S3 server. What is left after
the storm is settled the way a person would: effects in doubt are looked up outside and said so.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import exoflow
from exoflow.records import Status
from tests.fault import chaos
from tests.fault.command import ROOT
from tests.integration.services import S3Server, s3_credentials

DRIVERS = 2


class Driver:
    """A process that runs its share of the workflows; started again whenever it ends too early."""

    def __init__(self, store: str, folder: Path, numbers: list[int], log: Path) -> None:
        self._arguments = [store, str(folder), ",".join(map(str, numbers))]
        self._log = log
        self._process = self._start()
        self.starts = 1

    def _start(self) -> psutil.Popen:
        with open(self._log, "ab") as log:
            return psutil.Popen(
                [sys.executable, "-m", "tests.fault.chaos", *self._arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def workers(self) -> list[psutil.Process]:
        """Return the processes that run tasks and actors."""
        found = []
        for process in self.tree()[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith("ray::"):
                    found.append(process)
        return found

    def kill(self) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def done(self) -> bool:
        """Whether it has ended well; starts it again if it has ended otherwise."""
        code = self._process.poll()
        if code not in (None, 0):
            self.kill()
            self._process = self._start()
            self.starts += 1
        return code == 0

    def send(self, number: signal.Signals) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


class Storm:
    """Does one bad thing after the other."""

    def __init__(self, drivers: list[Driver], server: S3Server, seed: int) -> None:
        self._drivers, self._server = drivers, server
        self._random = random.Random(seed)
        self.deeds: dict[str, int] = defaultdict(int)

    def strike(self) -> None:
        deeds = [self._kill_worker] * 6 + [self._kill_driver, self._stop_driver, self._kill_server, self._stop_server]
        deed = self._random.choice(deeds)
        self.deeds[deed.__name__] += 1
        deed()

    def _driver(self) -> Driver:
        return self._random.choice(self._drivers)

    def _kill_worker(self) -> None:
        if workers := self._driver().workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                self._random.choice(workers).kill()

    def _kill_driver(self) -> None:
        self._driver().kill()

    def _stop_driver(self) -> None:
        """Stop a driver for longer than its lease while the other may take its place."""
        driver = self._driver()
        driver.send(signal.SIGSTOP)
        time.sleep(chaos.LEASE_SECONDS * 1.5)
        driver.send(signal.SIGCONT)

    def _kill_server(self) -> None:
        self._server.kill()
        time.sleep(self._random.random())
        self._server.start()

    def _stop_server(self) -> None:
        with self._server.frozen():
            time.sleep(self._random.random() * 2)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    with s3_credentials(), S3Server(tmp_path) as server:
        yield server


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("count", "storm_seconds"),
    [pytest.param(36, 30.0, id="short"), pytest.param(300, 1200.0, id="long", marks=pytest.mark.soak)],
)
def test_every_workflow_ends_right_and_every_effect_counts_once(count, storm_seconds, server, tmp_path):
    store = server.s3.new_store()
    numbers = list(range(count))
    # Every workflow is every driver's business: they meet, refuse each other and take over.
    drivers = [Driver(store, tmp_path, numbers, tmp_path / f"driver{each}.log") for each in range(DRIVERS)]
    seed = int(os.environ.get("EXOFLOW_SEED", time.time()))
    print(f"EXOFLOW_SEED={seed}")
    storm = Storm(drivers, server, seed=seed)
    deadline = time.monotonic() + storm_seconds
    try:
        while time.monotonic() < deadline and not all(list(map(Driver.done, drivers))):
            time.sleep(0.5)
            storm.strike()
        quiet = time.monotonic() + 120.0 + count
        while not all(list(map(Driver.done, drivers))):
            assert time.monotonic() < quiet, f"no end without faults: {tails(tmp_path)}"
            time.sleep(0.2)
    finally:
        for driver in drivers:
            driver.kill()
    print(dict(storm.deeds), [driver.starts for driver in drivers])
    settle_doubts(store, tmp_path, numbers)
    judge(store, tmp_path, numbers)


def tails(folder: Path) -> str:
    return "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("driver*.log")))


def settle_doubts(store: str, folder: Path, numbers: list[int]) -> None:
    """Look outside for every effect in doubt, say what happened, and resume."""
    for number in numbers:
        workflow_id, _ = chaos.workflow(number, str(folder))
        while exoflow.get_status(workflow_id, store=store) is Status.IN_DOUBT:
            assert chaos.CURES[number % 4] == "nothing", f"{workflow_id} has a cure"
            with pytest.raises(exoflow.InDoubt) as caught:
                exoflow.get_output(workflow_id, store=store)
            task = caught.value.task
            done = [line for line in chaos.told(folder) if line[:3] == ["did", workflow_id, task]]
            assert len(done) <= 1, f"{workflow_id} {task} was repeated without being asked"
            verdict = exoflow.Done([done[0][3], float(done[0][4])]) if done else exoflow.NotDone()
            exoflow.resolve(workflow_id, task, verdict, store=store)
            chaos.ensure_ray(num_cpus=2, object_store_bytes=96 * 1024 * 1024, log_to_driver=False)
            chaos.attempt(store, str(folder), number)


def judge(store: str, folder: Path, numbers: list[int]) -> None:
    """Ask of every workflow: has it succeeded, and did each of its effects happen once, as it says?"""
    effects: dict[tuple[str, str], dict[str, list[tuple[str, ...]]]] = defaultdict(lambda: defaultdict(list))
    for word, workflow_id, task, key, *what in chaos.told(folder):
        if word == "did":
            effects[workflow_id, task][key].append(tuple(what))
        else:
            effects[workflow_id, task].pop(key, None)
    for number in numbers:
        workflow_id, _ = chaos.workflow(number, str(folder))
        result = exoflow.get_output(workflow_id, store=store)
        tasks = ["pay"] if number % 3 else [f"pay[{i}]" for i in range(1, chaos.ITERATIONS + 1)]
        for place, task in enumerate(tasks):
            left = effects.pop((workflow_id, task))
            assert len(left) == 1, f"{workflow_id} {task}: {dict(left)}"
            ((key, applied),) = left.items()
            assert len(set(applied)) == 1, f"{workflow_id} {task}: one key, several values"
            if chaos.CURES[number % 4] != "idempotent":
                assert len(applied) == 1, f"{workflow_id} {task} happened {len(applied)} times"
            said = result[1] if number % 3 else [key, result[place]]
            assert said == [key, float(applied[0][0])], f"{workflow_id} {task}"
    assert not effects, f"effects of nobody: {list(effects)}"
