"""What a type checker makes of a user's project: right code passes, and mistakes are found where they are made."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from exoflow.options import Annotations, TaskOptions

PROJECT = Path(__file__).resolve().parents[2]
CONFIGURATION = """\
[mypy]
strict = true
follow_imports = silent
[mypy-ray.*,pyarrow.*,numba.*]
follow_imports = skip
"""
FLOW = """\
import exoflow


def undo(output: object, key: str) -> None: ...


def ask(key: str) -> exoflow.Done | exoflow.NotDone | exoflow.Unknown:
    return exoflow.Unknown()


@exoflow.task
def load(count: int) -> list[int]:
    return list(range(count))


@exoflow.task(checkpoint="async", deterministic=True, retries=3, timeout=2.5, metadata={"team": "graphs"})
def total(numbers: list[int]) -> int:
    return sum(numbers)


@exoflow.task(external=True, rollback=undo)
def book(amount: int) -> None: ...


@exoflow.task(external=True, resolve=ask)
def send(amount: int) -> None: ...


@exoflow.actor(checkpoint="async")
class Counter:
    def __init__(self, count: int) -> None:
        self.count = count

    def add(self, number: int) -> int:
        self.count += number
        return self.count


def body(carry: exoflow.Node, i: int) -> exoflow.Node:
    counter = exoflow.actor(Counter).options(name="counter", replicas=2).bind(0)
    added = counter.add.options(snapshot=i % 10 == 0, deterministic=True).bind(carry)
    return total.options(checkpoint="sync").bind([added]).also(book.bind(i).in_turn(max_behind=2))


counters = exoflow.actor(Counter, checkpoint="async")
here_and_now: int = total(load(3))
total("three")  # wrong
load(3).append("three")  # wrong
load.options(retires=3)  # wrong
total.options(retries="thrice")  # wrong
exoflow.actor(Counter).options(replica=2)  # wrong
counters.options(checkpoint=True)  # wrong
counters.bind(0).add.options(snapshots=False)  # wrong
exoflow.task(load, rollback=lambda output: None)  # wrong
exoflow.loop(lambda carry: carry, 0)  # wrong
load.bind(3) >> total  # wrong
"""


def test_a_strict_checker_takes_right_code_and_finds_each_mistake(tmp_path):
    (tmp_path / "flow.py").write_text(FLOW, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(CONFIGURATION, encoding="utf-8")
    examples = [str(PROJECT / "examples" / name) for name in ("nightly.py", "counter.py")]
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", "flow.py", *examples]
    environment = {**os.environ, "MYPYPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    places = [line.split(": error: ")[0] for line in done.stdout.splitlines() if ": note: " not in line]
    wrong = [f"flow.py:{number}" for number, line in enumerate(FLOW.splitlines(), 1) if line.endswith("  # wrong")]
    assert sorted(set(places)) == sorted(wrong), done.stdout + done.stderr


def test_annotations_are_the_same_for_checkers_and_at_run_time():
    assert set(Annotations.__annotations__) == {field.name for field in fields(TaskOptions)}
