"""The command `exoflow` against a store with one finished, one failed and one cut-off workflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import exoflow
from exoflow import cli
from exoflow.controller import Controller

PROJECT = Path(__file__).resolve().parents[2]


@exoflow.task
def numbers(count: int) -> list[int]:
    return list(range(count))


@exoflow.task(deterministic=True)
def total(values: list[int], gate: str) -> int:
    if not Path(gate).exists():
        message = "the gate is closed"
        raise ValueError(message)
    return sum(values)


def flow(gate: Path) -> Any:
    return total.bind(numbers.bind(5), str(gate))


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def store(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with `finished`, `failed` and `cut` (its owner gave up before the first task)."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "open").touch()
    store = str(folder / "store")
    exoflow.run(flow(folder / "open"), workflow_id="finished", store=store, metadata={"who": "me"})
    with pytest.raises(exoflow.TaskFailed):
        exoflow.run(flow(folder / "closed"), workflow_id="failed", store=store)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Controller, "run", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            exoflow.run(flow(folder / "open"), workflow_id="cut", store=store)
    return store


def _interrupted(_: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Return the command as a function; the process is afterwards as it was."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("exoflow.settings._chosen", {})

    def call(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["exoflow", *arguments])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return Answer(code, *capsys.readouterr())

    yield call
    signal.signal(signal.SIGTERM, before)


def test_ls_tells_where_each_workflow_stands(run: Run, store: str) -> None:
    answer = run("ls", "--store", store, "--json")
    assert answer.code == 0
    assert [json.loads(line) for line in answer.out.splitlines()] == [
        {"workflow_id": "cut", "status": "INTERRUPTED"},
        {"workflow_id": "failed", "status": "FAILED"},
        {"workflow_id": "finished", "status": "SUCCESSFUL"},
    ]
    plain = run("ls", "--store", store).out.split()
    assert plain == ["INTERRUPTED", "cut", "FAILED", "failed", "SUCCESSFUL", "finished"]


def test_options_may_come_from_the_environment(run: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXOFLOW_SHOW_STORE", store)
    monkeypatch.setenv("EXOFLOW_SHOW_JSON", "1")
    assert json.loads(run("show", "finished").out)["status"] == "SUCCESSFUL"


def test_show_tells_tasks_times_and_owner(run: Run, store: str) -> None:
    shown = json.loads(run("show", "finished", "--store", store, "--json").out)
    assert shown["metadata"] == {"who": "me"}
    assert f"process {os.getpid()} on" in shown["owner"]
    assert shown["generation"] == 1
    assert set(shown["tasks"]) == {"numbers", "total"}
    first, second = shown["tasks"]["numbers"], shown["tasks"]["total"]
    assert shown["started_at"] <= first["started_at"] <= first["finished_at"] <= second["committed_at"]
    assert second["committed_at"] <= shown["finished_at"]

    plain = run("show", "finished", "--store", store).out
    assert "SUCCESSFUL" in plain
    assert "2 tasks" in plain
    assert "error" not in plain


def test_show_tells_why_a_workflow_failed(run: Run, store: str) -> None:
    answer = run("show", "failed", "--store", store)
    assert answer.code == 0
    assert "ValueError: the gate is closed" in answer.out
    assert "1 task\n" in answer.out


def test_resume_runs_to_the_end_what_was_cut_off(run: Run, store: str) -> None:
    answer = run("resume", "cut", "--store", store, "--json")
    assert (answer.code, json.loads(answer.out.splitlines()[-1])) == (
        0,
        {"workflow_id": "cut", "status": "SUCCESSFUL", "result": 10},
    )
    assert json.loads(run("show", "cut", "--store", store, "--json").out)["generation"] == 2


def test_resume_of_a_finished_workflow_prints_its_result(run: Run, store: str) -> None:
    assert run("resume", "finished", "--store", store).out == "10\n"


def test_resume_of_what_fails_again_exits_1_without_traceback(run: Run, store: str) -> None:
    answer = run("resume", "failed", "--store", store, "--json")
    assert answer.code == 1
    assert json.loads(answer.out) == {
        "workflow_id": "failed",
        "error": "task total failed: ValueError: the gate is closed",
    }
    assert answer.err == "Error: task total failed: ValueError: the gate is closed\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("show", "nobody"), "no workflow 'nobody'"),
        (("resume", "nobody"), "no workflow 'nobody'"),
        (("resume", "finished", "--on-change", "ask"), "on-change"),
        (("gc",), "No such command"),
        (("ls", "--unknown"), "No such option"),
    ],
)
def test_bad_usage_and_unknown_ids_exit_2(run: Run, store: str, arguments: tuple[str, ...], told: str) -> None:
    answer = run(*arguments, "--store", store)
    assert answer.code == 2
    assert told in answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""


@pytest.mark.parametrize("uri", ["{}/typo", "file://{}/typo"])
def test_a_folder_that_is_not_there_is_refused_and_not_made(run: Run, tmp_path: Path, uri: str) -> None:
    answer = run("ls", "--store", uri.format(tmp_path))
    assert answer.code == 2
    assert "there is no folder" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_journal_is_told_with_its_key(run: Run, store: str, tmp_path: Path) -> None:
    source = Path(store) / "workflows" / "finished"
    copied = tmp_path / "workflows" / "finished"
    for path in (path for path in source.rglob("*") if path.is_file()):
        target = copied / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    newest = max((copied / "journal").iterdir())
    newest.write_bytes(newest.read_bytes()[:-7])
    answer = run("show", "finished", "--store", str(tmp_path))
    assert answer.code == 1
    assert f"journal/{newest.name} is cut short or altered" in answer.err
    assert "Traceback" not in answer.err


def test_a_live_owner_keeps_its_workflow(run: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise exoflow.WorkflowRunning(workflow_id="failed", owner="process 7 on elsewhere")

    monkeypatch.setattr("exoflow.api.wait_until_claimable", refused)
    answer = run("resume", "failed", "--store", store)
    assert answer.code == 1
    assert "is running, owned by process 7 on elsewhere" in answer.err
    assert "--take-over" in answer.err
    assert run("resume", "failed", "--store", store, "--take-over").err.endswith("the gate is closed\n")


def test_a_result_that_json_cannot_hold_is_told_in_words(run: Run, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exoflow.api.resume", lambda *_, **__: {1.5j})
    assert json.loads(run("resume", "finished", "--store", store, "--json").out)["result"] == "{1.5j}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_exits_130_and_says_how_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "waiting.py").write_text(_WAITING, encoding="utf-8")
    folder = str(tmp_path / "store")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "waiting.py"], cwd=tmp_path, env=environment, check=True)

    command = [sys.executable, "-c", "import exoflow.cli; exoflow.cli.main()", "resume", "wait", "--store", folder]
    # Be interruptible, even where the tests themselves run in the background of a shell, which are not.
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "running").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the task never started"
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"interrupted; resume with: exoflow resume wait --store {folder}" in err
    assert exoflow.get_status("wait", store=folder) is exoflow.Status.INTERRUPTED


_WAITING = """
import threading
from pathlib import Path

import exoflow
from exoflow.controller import Controller


@exoflow.task
def wait():
    Path("running").touch()
    threading.Event().wait()


def interrupted(_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    import waiting

    Controller.run = interrupted
    exoflow.remote.ensure_ray = exoflow.api.ensure_ray = lambda **_: None
    try:
        exoflow.run(waiting.wait.bind(), workflow_id="wait", store="store")
    except KeyboardInterrupt:
        pass
"""
