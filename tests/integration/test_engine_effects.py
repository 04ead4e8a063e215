"""Effects on a real Ray: cut off before and after they happened, by their process, their owner or themselves."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import exoflow
from exoflow import cli
from exoflow.executor import RayExecutor
from exoflow.records import Status
from tests.integration import engine_flows as flows
from tests.integration.test_engine_owners import program, until

pytestmark = pytest.mark.usefixtures("ray_cluster")
RECEIPT = "paid 7"


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def run(node: Any, store: str, **options: Any) -> Any:
    return exoflow.run(node, workflow_id="w", store=store, **options)


@pytest.mark.parametrize("cut", ["die before", "die after", "raise before", "raise after", "vouch before"])
@pytest.mark.parametrize("cure", ["idempotent", "rollback", "resolve"])
def test_an_effect_with_a_cure_counts_once(cure, cut, store, tmp_path):
    assert run(flows.paying(str(tmp_path), cure, cut), store) == RECEIPT
    done = flows.effective(tmp_path)
    assert len(done) == 1, done
    (told,) = done.values()
    assert len(set(told)) == 1, "one key carries one value"
    if cure != "idempotent":
        assert len(told) == 1
    assert exoflow.get_status("w", store=store) is Status.SUCCESSFUL


@pytest.mark.parametrize("cut", ["die before", "die after", "raise after"])
def test_an_effect_without_a_cure_is_in_doubt_until_a_person_says(cut, store, tmp_path):
    node = flows.paying(str(tmp_path), "nothing", cut)
    with pytest.raises(exoflow.InDoubt, match=r"exoflow resolve w 'pay' --done VALUE \| --not-done"):
        run(node, store)
    assert exoflow.get_status("w", store=store) is Status.IN_DOUBT
    happened = len(flows.effective(tmp_path))
    assert happened == (cut != "die before")
    with pytest.raises(exoflow.InDoubt):
        exoflow.resume("w", store=store)
    with pytest.raises(exoflow.InDoubt):
        exoflow.get_output("w", store=store)
    assert len(flows.effective(tmp_path)) == happened, "nothing was repeated"
    with pytest.raises(exoflow.WorkflowError, match="in doubt: pay"):
        exoflow.resolve("w", "shown", exoflow.NotDone(), store=store)
    exoflow.resolve("w", "pay", exoflow.Done(RECEIPT) if happened else exoflow.NotDone(), store=store)
    assert exoflow.get_status("w", store=store) is Status.INTERRUPTED
    assert exoflow.resume("w", store=store) == RECEIPT
    assert [len(told) for told in flows.effective(tmp_path).values()] == [1]


def test_the_command_settles_a_doubt(store, tmp_path, monkeypatch, capsys):
    with pytest.raises(exoflow.InDoubt):
        run(flows.paying(str(tmp_path), "nothing", "die after"), store)
    for arguments, code in ((["--done", '"paid 7"', "--not-done"], 2), ([], 2), (["--done", "paid 7"], 0)):
        monkeypatch.setattr("sys.argv", ["exoflow", "resolve", "w", "pay", "--store", store, *arguments])
        ended: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            ended = end.code
        assert ended == code, capsys.readouterr()
    assert f"exoflow resume w --store {store}" in capsys.readouterr().err
    assert exoflow.resume("w", store=store) == RECEIPT


def test_a_body_that_vouches_for_no_effect_fails_without_doubt(store, tmp_path):
    with pytest.raises(exoflow.TaskFailed, match="refused at the door"):
        run(flows.paying(str(tmp_path), "nothing", "vouch before"), store)
    assert exoflow.resume("w", store=store) == RECEIPT


@pytest.mark.parametrize("cure", ["idempotent", "rollback", "resolve", "nothing"])
def test_an_owner_killed_in_the_middle_of_an_effect(cure, store, tmp_path):
    process = program("pay_program", store, str(tmp_path), cure)
    until(lambda: "hangs here" in flows.noted(tmp_path) or process.poll() is not None)
    process.kill()
    process.communicate()
    if cure == "nothing":
        with pytest.raises(exoflow.InDoubt, match="its owner stopped while it ran"):
            exoflow.resume("w", store=store)
        exoflow.resolve("w", "pay", exoflow.Done(RECEIPT), store=store)
    assert exoflow.resume("w", store=store) == RECEIPT
    (told,) = flows.effective(tmp_path).values()
    assert len(set(told)) == 1
    assert len(told) == (2 if cure == "idempotent" else 1)


# --- time-outs and caught exceptions ------------------------------------------------------------------------


@exoflow.task(timeout=0.5, num_cpus=0)
def hangs_once(folder: str) -> str:
    if flows.once(folder, "hang"):
        signal.pause()
    return "in time"


def test_a_body_that_takes_too_long_is_ended_and_counts_as_failed(store, tmp_path):
    with pytest.raises(exoflow.TaskFailed, match=r"did not return within its timeout of 0\.5 s"):
        run(hangs_once.bind(str(tmp_path)), store)
    (tmp_path / "once-hang").unlink()
    assert run(hangs_once.options(retries=1, backoff=0.0).bind(str(tmp_path)), str(tmp_path / "other")) == "in time"


def test_an_effect_that_takes_too_long_is_in_doubt(store, tmp_path):
    node = flows.pay.options(timeout=1.0).bind(str(tmp_path), "hang after", 7)
    with pytest.raises(exoflow.InDoubt, match=r"did not return within its timeout of 1\.0 s"):
        run(node, store)


@exoflow.task(catch_exceptions=True, num_cpus=0, backoff=0.0)
def divide(folder: str, by: int) -> float:
    flows.note(folder, f"by {by}")
    return 6 / by


def test_caught_exceptions_are_outputs(store, tmp_path):
    assert run(divide.bind(str(tmp_path), 3), store) == (2.0, None)
    value, error = run(divide.options(retries=2).bind(str(tmp_path), 0), str(tmp_path / "other"))
    assert value is None
    assert isinstance(error, ZeroDivisionError)
    assert flows.noted(tmp_path) == ["by 3", "by 0", "by 0", "by 0"]


@exoflow.actor(deterministic=True)
class Sleeper:
    def __init__(self) -> None:
        self.slept = 0

    def sleep(self, folder: str) -> int:
        if flows.once(folder, "sleep"):
            signal.pause()
        self.slept += 1
        return self.slept

    def capture(self) -> int:
        return self.slept

    def restore(self, slept: int) -> None:
        self.slept = slept


def test_a_call_that_takes_too_long_costs_its_actor_and_is_made_again(store, tmp_path):
    sleeper = Sleeper.options(num_cpus=0).bind()
    first = sleeper.sleep.options(timeout=0.5).bind(str(tmp_path))
    second = sleeper.sleep.options(timeout=0.5).bind(str(tmp_path))
    first >> second
    assert run(second, store) == 2
    assert os.path.exists(tmp_path / "once-sleep")


def test_a_store_out_of_reach_before_the_body_leaves_no_doubt(store, tmp_path, monkeypatch):
    """The body's process cannot read the journal, so it does not begin."""
    node = flows.pay.bind(str(tmp_path), "never", 7)
    submit = RayExecutor.submit

    def hide(self: RayExecutor, order: Any) -> None:
        if order.spec.options.external and flows.once(str(tmp_path), "hide"):
            monkeypatch.setattr(self, "_store_uri", str(tmp_path / "absent" / "file"))
            (tmp_path / "absent").touch()
        submit(self, order)

    monkeypatch.setattr(RayExecutor, "submit", hide)
    with pytest.raises(exoflow.TaskFailed, match="Not a directory"):
        run(node, store)
    assert flows.effective(tmp_path) == {}
    assert exoflow.resume("w", store=store) == RECEIPT
