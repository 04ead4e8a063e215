"""SIGKILL of everything at random moments: a resumed run ends exactly like one that nothing happened to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from graph_stream.runs import open_run
from spark.session import JavaMissing, require_java
from tests.fault.command import Command, graph_stream
from tests.fault.crashes import (
    EPOCHS,
    Outcome,
    Stream,
    epochs_of,
    epochs_published,
    outcome_of,
    published,
    wait_for_moment,
)

MODES = ("none", "async", "sync")
pytestmark = pytest.mark.timeout(300)


def crash_and_resume(stream: Stream, undisturbed: Outcome, store: Path, mode: str, seed: int) -> None:
    with Command("run", *stream.options("run", store, mode), terminal=True) as run:
        if mode != "none":
            run.until(lambda: published(run) > 0 and open_run("run", str(store)).newest > 0)
        wait_for_moment(run, f"{mode} {seed}")
        run.kill()
        run.until_nothing_is_left()
    before = epochs_of("run", store)
    assert [epoch["state_hash"] for epoch in before] == undisturbed.hashes[: len(before)]
    assert bool(before) == (mode != "none")

    if seed % 2:
        # Once more, while it resumes; and this time the rest of the tree has to notice by itself.
        with Command("resume", "--run-id", "run", "--store", store, terminal=True) as resumed:
            wait_for_moment(resumed, f"{mode} {seed} again", len(before) + 1)
            resumed.kill_driver()
            resumed.until_nothing_is_left()
        again = epochs_of("run", store)
        assert len(again) >= len(before)
        before = again

    ended = graph_stream("resume", "--run-id", "run", "--store", store, "--json").checked()
    assert ended.result["status"] == "SUCCESSFUL"
    assert epochs_published(ended.result) == EPOCHS - len(before)
    outcome = outcome_of("run", store)
    assert outcome.hashes == undisturbed.hashes
    assert outcome.scores.equals(undisturbed.scores)
    for name in ("epoch", "edges", "rounds", "error_bound", "offsets"):
        assert [epoch[name] for epoch in outcome.epochs] == [epoch[name] for epoch in undisturbed.epochs]
    # Committed is committed: what readers could see before the crash is what they see after it.
    assert [epoch["bytes"] for epoch in outcome.epochs[: len(before)]] == [epoch["bytes"] for epoch in before]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(2))
def test_a_killed_run_resumes_to_the_undisturbed_outcome(stream, undisturbed, tmp_path, mode, seed):
    crash_and_resume(stream, undisturbed, tmp_path, mode, seed)


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_killed_run_resumes_to_the_undisturbed_outcome_many_times(stream, undisturbed, tmp_path, mode, seed):
    crash_and_resume(stream, undisturbed, tmp_path, mode, seed)


@pytest.mark.java
def test_a_batch_cut_off_by_a_crash_is_completed_once(stream, undisturbed, tmp_path):
    try:
        require_java()
    except JavaMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    batches = tmp_path / "workflows" / "run" / "objects" / "batches"
    with Command("run", *stream.options("run", tmp_path, "async", batch_every=20), terminal=True) as run:
        run.until(lambda: any(batches.glob("*/attempt-*")))
        run.kill()
        run.until_nothing_is_left()
    assert not list(batches.glob("*/_current.json"))

    result = graph_stream("resume", "--run-id", "run", "--store", tmp_path, "--json").checked().result
    assert result["batches"] == EPOCHS // 20
    assert result["state_hash"] == undisturbed.hashes[-1]
    folders = sorted(batches.iterdir())
    assert len(folders) == EPOCHS // 20
    for epoch, folder in zip((20, 40), folders, strict=True):
        pointer = json.loads((folder / "_current.json").read_text())
        assert [path.name for path in folder.glob("attempt-*")] == [pointer["attempt"]]
        audit = graph_stream("audit", "--run-id", "run", "--store", tmp_path, "--epoch", epoch, "--json").checked()
        assert audit.result["within_bound"]
        assert audit.result["path"] == str(folder / pointer["attempt"])
