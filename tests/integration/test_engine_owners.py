"""Owners as processes of their own: killed at any moment, or stopped and taken over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import exoflow
from exoflow.journal import read_journal
from exoflow.ownership import heartbeat_key
from exoflow.storage import LocalStore
from tests.integration import engine_flows as flows

MODES = ("none", "async", "sync")
LAST = 20
KILLS = int(os.environ.get("EXOFLOW_KILLS", "1"))
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def owner(store: str, folder: Path, mode: str, last: int = LAST, lease: float = 10.0) -> subprocess.Popen[str]:
    arguments = [store, "w", str(folder), mode, str(last), str(lease)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.engine_flows", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(ready: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def committed(store: str) -> set[str]:
    return set(read_journal(LocalStore(store), "w").history.committed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_owners_workflow_is_resumed_to_the_same_result(mode, seed, store, tmp_path):
    moment = random.Random(f"{mode}{seed}").randint(2, LAST - 3)
    process = owner(store, tmp_path, mode)
    until(lambda: f"slow {moment}" in flows.noted(tmp_path) or process.poll() is not None)
    process.kill()
    process.communicate()
    survived = committed(store)
    before = Counter(flows.noted(tmp_path))
    assert exoflow.resume("w", store=store) == LAST * (LAST + 1) // 2
    after = Counter(flows.noted(tmp_path)) - before
    for line in after:
        kind, number, *_ = line.split()
        assert f"{kind}[{number}]" not in survived, f"{line} ran although it was committed"
    reports = [line.split() for line in flows.noted(tmp_path) if line.startswith("report")]
    by_key = {(number, key): state for _, number, key, state in reports}
    assert sorted((int(number), int(state)) for (number, _), state in by_key.items()) == [
        (number, number * (number + 1) // 2) for number in range(5, LAST + 1, 5)
    ]
    assert all(by_key[number, key] == state for _, number, key, state in reports)


def test_a_stopped_owner_is_taken_over_and_then_fenced(store, tmp_path):
    process = owner(store, tmp_path, "sync", last=60, lease=1.0)
    try:
        until(lambda: "slow 4" in flows.noted(tmp_path) or process.poll() is not None)
        process.send_signal(signal.SIGSTOP)
        assert exoflow.resume("w", store=store, lease_seconds=1.0) == 60 * 61 // 2
        folder = LocalStore(store)
        before = {key: folder.get(key) for key in folder.list("workflows")}
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "Fenced" in errors
    after = {key: folder.get(key) for key in folder.list("workflows")}
    # The heartbeat is advisory: one beat may have been on its way when the process was stopped.
    advisory = heartbeat_key("w")
    assert after | {advisory: None} == before | {advisory: None}
