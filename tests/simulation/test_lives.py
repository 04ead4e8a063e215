"""Random workflows under random faults: at least two thousand lives, each from one seed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from exoflow.records import Status
from exoflow.state import WorkflowState
from exoflow.testing import Faults, Life, Violation
from exoflow.testing.__main__ import live, replay_line
from exoflow.testing.outside import outside
from exoflow.testing.workers import Workers

RUNS = int(os.environ.get("EXOFLOW_SIMULATIONS", "2000"))
FIRST = int(os.environ.get("EXOFLOW_FIRST_SEED", "0"))
CHUNKS = 20

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_lives_keep_every_promise(chunk: int) -> None:
    seeds = range(FIRST + chunk * RUNS // CHUNKS, FIRST + (chunk + 1) * RUNS // CHUNKS)
    wrong = [found for seed in seeds if (found := live(seed)) is not None]
    assert not wrong, "\n\n".join(wrong)


def caught(life: Life) -> int:
    """Return how many errors count as outputs."""
    history = life.judge.history
    return sum(record.output is not None and record.output.codec == "pickle" for record in history.committed.values())


def test_the_storm_is_rough_enough() -> None:
    crashes = takeovers = folds = readers = doubts = failures = mended = errors = cleared = 0
    for seed in range(200):
        life = Life(seed)
        doubts += life.run() == "IN_DOUBT"
        failures += any(owner.end is not None and owner.end.status is Status.FAILED for owner in life.owners)
        mended += not outside.closed
        errors += caught(life)
        cleared += bool(life.judge.history.cleared)
        crashes += sum(not owner.alive and owner.end is None and owner.error is None for owner in life.owners)
        takeovers += life.overtaken
        folds += any(entry.kind == "delete" and "/journal/" in entry.key for entry in life.world.log)
        readers += any("/pins/" in entry.key for entry in life.world.log)
    assert min(crashes, takeovers, folds, readers, doubts) > 0
    assert min(failures, mended, errors, cleared) > 0


def test_members_die_while_others_wait_for_their_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    kill = Workers._kill_member

    def spied(self: Workers, known: Any, index: int) -> None:
        others = [member for place, member in enumerate(known.members) if place != index]
        waited.append(any(member.suspended for member in others))
        kill(self, known, index)

    monkeypatch.setattr(Workers, "_kill_member", spied)
    for seed in range(200):
        Life(seed, faults=Faults(lose_actor=0.05)).run()
    assert True in waited
    assert False in waited


def broken(life: Life) -> Life:
    """Plant a bug: every blob is torn, and nobody is told."""
    put = life.world.store.put
    life.world.store.put = lambda key, data: put(key, data[:-1] if "/blobs/" in key else data)  # type: ignore[method-assign]
    return life


def test_a_failing_seed_is_told_with_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exoflow.testing.__main__.Life", lambda seed: broken(Life(seed)))
    told = {seed: found for seed in range(20) if (found := live(seed)) is not None}
    assert told
    for seed, found in told.items():
        assert found.splitlines()[-1] == replay_line(seed)
        assert live(seed) == found
        traced = live(seed, trace=True)
        assert traced is not None
        assert traced.endswith(found)
        assert len(traced.splitlines()) > len(found.splitlines())


def command(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    words = [sys.executable, "-m", "exoflow.testing", *arguments]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_a_seed_decides_everything_whatever_the_process() -> None:
    traces = {command("--seed", "7", "--trace", hash_seed=hash_seed).stdout for hash_seed in ("1", "2")}
    assert len(traces) == 1
    assert len(traces.pop().splitlines()) > 20


def test_the_command_runs_many_and_says_how_fast() -> None:
    done = command("--runs", "5", "--first", "100")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("5 runs, 0 wrong, ")


def test_a_life_that_never_ends_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkflowState, "_append_what_is_ready", lambda self: None)
    with pytest.raises(Violation, match="waits"):
        Life(3).run()
