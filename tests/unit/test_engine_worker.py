"""What runs where the work runs, without Ray around it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import exoflow
from exoflow.codec import Encoded, decode, encode
from exoflow.plan import build
from exoflow.storage import MemoryStore
from exoflow.worker import Failure, Job, Member, run_task


@pytest.fixture
def actor_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with an actor class ``Opener``."""
    lines = ["import exoflow", "", "@exoflow.actor", "class Opener:", "    def open(self):", "        pass", ""]
    (tmp_path / "module_of_an_actor.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "module_of_an_actor"


def test_a_member_imports_its_code_before_anything_else_runs_beside_it(actor_module, monkeypatch):
    """Arguments of calls are unpickled in another thread than the body's, and may come as soon as it is made."""
    opener = importlib.import_module(actor_module).Opener
    (spec,) = build(opener.bind().open.bind()).actors
    monkeypatch.delitem(sys.modules, actor_module)
    member = Member(spec, "w", MemoryStore(), 0, None, None)
    assert actor_module in sys.modules
    assert member.start() is None


def test_code_that_cannot_be_imported_is_told_by_the_first_call(actor_module, monkeypatch):
    opener = importlib.import_module(actor_module).Opener
    (spec,) = build(opener.bind().open.bind()).actors
    monkeypatch.setitem(sys.modules, actor_module, None)
    member = Member(spec, "w", MemoryStore(), 0, None, None)
    assert member.start() is None
    call = Job("w", "", "open", 0, 0, "", False, encode([[], {}]), (), method="open")
    _, outcome = member.call(call, ())
    assert isinstance(outcome, Failure)
    assert "could not be started" in outcome.error
    assert actor_module in outcome.error


@exoflow.actor
class Ledger:
    """Tells when it is captured, and when that is made durable."""

    def __init__(self) -> None:
        self.total = 0

    def add(self) -> int:
        self.total += 1
        return self.total

    def look(self) -> int:
        exoflow.context().request_checkpoint()
        return self.total

    def capture(self) -> int:
        HAPPENED.append(f"captured {self.total}")
        return self.total

    def persist(self, captured: int) -> int:
        HAPPENED.append(f"persisted {captured}")
        return captured

    def restore(self, total: int) -> None:
        self.total = total


HAPPENED: list[str] = []


@pytest.fixture
def ledger() -> Member:
    """Return a member whose first three calls, attempts 1 to 3, have returned."""
    HAPPENED.clear()
    (spec,) = build(Ledger.bind().add.bind()).actors
    member = Member(spec, "w", MemoryStore(), 0, None, None)
    assert member.start() is None
    for attempt in (1, 2, 3):
        call = Job("w", "", "add", attempt, 0, "", False, encode([[], {}]), (), method="add", capture=True)
        value, _ = member.call(call, ())
        assert value == attempt
    return member


def test_a_call_returns_before_its_state_begins_to_become_durable(ledger):
    assert HAPPENED == ["captured 1", "captured 2", "captured 3"]


def test_a_query_captures_nothing_for_calls_go_on_beside_it(ledger):
    look = Job("w", "", "look", 4, 0, "", False, encode([[], {}]), (), method="look", query=True)
    assert ledger.call(look, ())[0] == 3
    assert HAPPENED == ["captured 1", "captured 2", "captured 3"]


def test_states_become_durable_in_the_order_of_calls_whatever_is_asked_for_first(ledger):
    values = {attempt: ledger.persist(attempt) for attempt in (2, 1, 3)}
    assert HAPPENED[3:] == ["persisted 1", "persisted 2", "persisted 3"]
    assert [decode(Encoded(values[attempt].codec, values[attempt].data)) for attempt in (1, 2, 3)] == [1, 2, 3]


@exoflow.task(catch_exceptions=True, retries=5)
def hopeless() -> None:
    message = "closed for good"
    raise exoflow.NoRetry(message)


@pytest.mark.parametrize(
    ("last", "repeats", "caught"), [(False, False, True), (False, True, False), (True, False, True)]
)
def test_an_error_that_no_retry_helps_against_is_caught_where_the_last_one_would_be(last, repeats, caught):
    (spec,) = build(hopeless.bind()).tasks
    arguments = encode([[], {}])
    job = Job("w", "", "hopeless", 0, 0, "", True, arguments, (), spec.code, catches=True, last=last, repeats=repeats)
    value, outcome = run_task(job, (), MemoryStore())
    if caught:
        assert value[0] is None
        assert isinstance(value[1], exoflow.NoRetry)
    else:
        assert isinstance(outcome, Failure)
        assert outcome.no_retry
