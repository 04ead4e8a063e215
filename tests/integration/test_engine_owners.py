"""Owners as processes of their own: killed at any moment, or stopped and taken over."""

from __future__ import annotations

import os
import random
import re
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
from exoflow.storage import open_store
from tests.integration import engine_flows as flows

MODES = ("none", "async", "sync")
LAST = 20
KILLS = int(os.environ.get("EXOFLOW_KILLS", "1"))
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URI of an empty store; the tests run once on each kind."""
    if request.param == "local":
        return str(tmp_path / "store")
    uri: str = request.getfixturevalue("s3").new_store()
    return uri


def owner(store: str, folder: Path, mode: str, last: int = LAST, lease: float = 10.0) -> subprocess.Popen[str]:
    return program("program", store, "w", str(folder), mode, str(last), str(lease))


def program(*arguments: str) -> subprocess.Popen[str]:
    """Start a function of `engine_flows` as a process of its own."""
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
    return set(read_journal(open_store(store), "w").history.committed)


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
        folder = open_store(store)
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


def test_a_stopped_owner_starts_no_effect_after_it_was_replaced(store, tmp_path):
    """Stopped for longer than its lease right before an effect, it must not begin it when it goes on."""
    process = program("gated_program", store, str(tmp_path))
    try:
        until(lambda: "waits for the gate" in flows.noted(tmp_path) or process.poll() is not None)
        process.send_signal(signal.SIGSTOP)
        (tmp_path / "gate").touch()
        # Its worker goes on, so that the effect is what the owner orders first when it wakes.
        assert exoflow.resume("w", store=store, lease_seconds=1.0) == ["sent"] * 3
        before = flows.noted(tmp_path)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert "Fenced" in errors
    assert flows.noted(tmp_path) == before
    sent = [line for line in before if line.startswith("sent")]
    assert len(sent) == len(set(sent)) == 3


def test_a_live_owner_is_left_alone_and_of_two_resumes_one_runs(store, tmp_path):
    process = owner(store, tmp_path, "async", last=60)
    try:
        until(lambda: "slow 4" in flows.noted(tmp_path) or process.poll() is not None)
        with pytest.raises(exoflow.WorkflowRunning):
            exoflow.resume("w", store=store)
    finally:
        process.kill()
        process.communicate()

    # The killed owner's workflow, resumed from two processes at the same time.
    rivals = [owner(store, tmp_path, "async", last=60) for _ in range(2)]
    try:
        told = [rival.communicate(timeout=100) for rival in rivals]
    finally:
        for rival in rivals:
            rival.kill()
            rival.communicate()
    codes = [rival.returncode for rival in rivals]
    assert 0 in codes
    for code, (_, errors) in zip(codes, told, strict=True):
        # Who came while the other ran was turned away; who came after it got the recorded result.
        assert code == 0 or "WorkflowRunning" in errors
    assert read_journal(open_store(store), "w").header.generation == 2
    assert exoflow.resume("w", store=store) == 60 * 61 // 2


def test_a_crash_loop_ends_as_failed_and_may_be_resumed_again(store, tmp_path, monkeypatch):
    def crash(_: Any) -> None:
        raise KeyboardInterrupt

    node = flows.shown.bind("receipt")
    with monkeypatch.context() as patched:
        patched.setattr("exoflow.controller.Controller.run", crash)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                exoflow.run(node, workflow_id="w", store=store, max_claims=3)
        with pytest.raises(exoflow.WorkflowError, match="3 owners in a row ended before anything was committed"):
            exoflow.run(node, workflow_id="w", store=store, max_claims=3)
    assert exoflow.get_status("w", store=store) is exoflow.Status.FAILED
    with pytest.raises(exoflow.WorkflowError, match="failed: 3 owners in a row"):
        exoflow.get_output("w", store=store)
    assert exoflow.resume("w", store=store, max_claims=3) == "receipt"


def test_a_node_that_dies_interrupts_the_workflow_instead_of_leaving_it_waiting(tmp_path):
    ended = program("node_program", str(tmp_path / "store"), str(tmp_path))
    out, err = ended.communicate(timeout=100)
    # Before it, Ray says what it knows of the death.
    lost, last = out.splitlines()[:-1], out.splitlines()[-1]
    told = [
        line for line in lost if re.fullmatch("the Ray node .* of this process has died; resume the workflow", line)
    ]
    assert len(set(told)) == 2, (out, err)
    assert last == "7"
