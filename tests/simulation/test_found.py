"""What random lives have found: each bug once more by hand, with the events that led to it and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from exoflow.codec import Blob, encode
from exoflow.dag import Node
from exoflow.effects import effect_key
from exoflow.messages import (
    ActorLost,
    Append,
    Appended,
    Complete,
    Event,
    Failed,
    Instruction,
    Persist,
    Persisted,
    Produced,
    Purpose,
    Refused,
    Report,
    StartActor,
    Submit,
    Wake,
    Woken,
)
from exoflow.plan import build
from exoflow.records import Cleared, Committed, Finished, History, Intended, Record, Started, Status, Value
from exoflow.state import MAX_LOSSES, WorkflowState
from exoflow.testing.workflows import Ledger, book, draw, emit, join, send, shout

OUTPUT = Value.inline(encode("made"))
LARGE = Value("json", None, Blob("large", 70_000, "0" * 64))
ledgers: Any = Ledger


class Bench:
    """The core alone: `ran` holds every submission by task, oldest first."""

    def __init__(self, node: Node, records: Sequence[Record] = ()) -> None:
        history = History()
        history.add([Started("digest", "nonce", 0.0), *records])
        self.core = WorkflowState(build(node), history, _no_loops)
        self.ran: dict[str, list[Submit]] = {}
        self.incarnations: dict[str, int] = {}
        self.persists: list[Persist] = []
        self.writing: Append | None = None
        self.end: Complete | None = None
        self._obey(self.core.start(1.0))

    def _obey(self, instructions: Sequence[Instruction]) -> None:
        for order in instructions:
            match order:
                case Submit():
                    self.ran.setdefault(order.spec.id, []).append(order)
                case StartActor():
                    self.incarnations[order.spec.id] = order.incarnation
                case Persist():
                    self.persists.append(order)
                case Append():
                    assert self.writing is None
                    self.writing = order
                case Wake():
                    self.tell(Woken(order.task))
                case Complete():
                    self.end = order

    def tell(self, event: Event) -> None:
        self._obey(self.core.apply(event, 1.0))
        self.core.check_invariants()

    def land(self) -> tuple[Record, ...]:
        """Let the append in flight land; return its records."""
        assert self.writing is not None, "nothing is being written"
        landed, self.writing = self.writing.records, None
        self.tell(Appended(1.0))
        return landed

    def produce(self, task: str, output: Value | None = OUTPUT, state: Value | None = None) -> None:
        self.tell(Produced(task, self.ran[task][-1].attempt, Report(output, state)))

    def fail(self, task: str, *, not_done: bool = False) -> None:
        self.tell(Failed(task, self.ran[task][-1].attempt, "Boom", not_done))

    def refuse(self, task: str) -> None:
        self.tell(Refused(task, self.ran[task][-1].attempt))

    def lose(self, actor: str) -> None:
        self.tell(ActorLost(actor, self.incarnations[actor], "killed"))


def _no_loops(*_: Any) -> Any:
    raise AssertionError


def intent(task: str) -> Intended:
    return Intended(task, effect_key("nonce", task, 0, 0))


def pay(ledger: Any) -> Any:
    return ledger.pay.options(external=True, idempotent=True, name="pay")


def replayed_call_and_payment() -> Bench:
    """Return a bench where a committed call runs again, and one with an effect waits behind it."""
    ledger = ledgers.options(name="ledger").bind(0)
    told = ledger.tell.options(name="tell", snapshot=False).bind()
    bench = Bench(join.bind(0, told, pay(ledger).bind()), [Committed("tell", 1, OUTPUT, actor="ledger"), intent("pay")])
    assert bench.ran["pay"][-1].call.expects == bench.ran["tell"][-1].call.leaves
    return bench


def ended(bench: Bench) -> Finished:
    """Return the end of a workflow that has nothing more to wait for."""
    while True:
        for record in bench.land():
            if isinstance(record, Finished):
                return record


@pytest.mark.parametrize("returned", [False, True])
def test_an_actor_that_keeps_dying_ends_the_workflow_though_an_effect_of_its_own_was_under_way(returned):
    bench = Bench(pay(ledgers.options(name="ledger").bind(0)).bind())
    bench.land()
    for _ in range(MAX_LOSSES + 1):
        if returned:
            bench.produce("pay")
        bench.lose("ledger")
    assert ended(bench).status is Status.FAILED


def test_a_call_that_fails_for_good_ends_the_workflow_though_an_effect_waits_behind_it():
    bench = replayed_call_and_payment()
    bench.fail("tell")
    assert ended(bench).status is Status.FAILED


def test_a_refused_call_takes_along_the_effect_that_waits_behind_it():
    bench = replayed_call_and_payment()
    bench.refuse("tell")
    bench.produce("tell")
    assert [len(bench.ran[task]) for task in ("tell", "pay")] == [2, 2]
    assert bench.ran["pay"][-1].call.expects == bench.ran["tell"][-1].call.leaves


def test_who_reads_the_committed_output_of_a_replayed_call_does_not_run_again_with_it():
    ledger, copies = (ledgers.options(name=name).bind(0) for name in ("ledger", "copies"))
    told = ledger.tell.options(name="tell", snapshot=False).bind()
    more = ledger.tell.options(name="more").bind()
    copied = copies.tell.options(name="copy").bind(told)
    bench = Bench(join.bind(0, copied, more), [Committed("tell", 1, OUTPUT, actor="ledger")])
    bench.refuse("tell")
    assert [len(bench.ran[task]) for task in ("tell", "copy")] == [2, 1]


def test_an_output_that_was_let_go_is_made_again_when_a_rollback_drops_its_record():
    ledger = ledgers.options(name="ledger", checkpoint="async").bind(0)
    large = draw.options(checkpoint="none", name="large").bind(0)
    told = ledger.tell.options(name="tell").bind()
    drawn = draw.options(checkpoint="none", name="drawn").bind(0, large, told)
    other = draw.options(checkpoint="async", name="other").bind(0)
    bench = Bench(join.options(checkpoint="async").bind(0, drawn, other))
    bench.produce("other")
    bench.produce("large", None)
    bench.produce("tell", OUTPUT, OUTPUT)
    bench.produce("drawn")
    [order] = bench.persists
    bench.tell(Persisted("large", order.attempt, LARGE, None))
    bench.lose("ledger")
    bench.land()
    assert [len(bench.ran[task]) for task in ("large", "tell", "drawn")] == [2, 2, 2]


@pytest.mark.parametrize(("task", "runs_again"), [(shout, False), (book.options(retries=1, backoff=0.0), True)])
def test_an_effect_that_says_it_was_not_done_is_not_in_doubt_after_a_rollback(task, runs_again):
    ledger = ledgers.options(name="ledger", checkpoint="async").bind(0)
    effect = task.options(name="effect").bind(0)
    other = draw.options(checkpoint="async", name="other").bind(0)
    bench = Bench(join.bind(0, effect, ledger.tell.options(name="tell").bind(), other))
    assert [type(record) for record in bench.land()] == [Intended]
    bench.produce("other")
    bench.fail("effect", not_done=True)
    bench.lose("ledger")
    bench.land()
    assert any(isinstance(record, Cleared) for record in bench.land())
    assert all(order.purpose is Purpose.BODY for order in bench.ran["effect"])
    if runs_again:
        assert any(isinstance(record, Intended) for record in bench.land())
        assert len(bench.ran["effect"]) == 2
    else:
        assert ended(bench).status is Status.FAILED


def test_an_effect_that_says_it_was_not_done_is_cleared_when_the_workflow_fails():
    bench = Bench(emit.bind(0))
    bench.land()
    bench.fail("emit", not_done=True)
    assert [type(record) for record in bench.land()] == [Cleared, Finished]


@pytest.mark.parametrize("not_done", [True, False])
def test_an_error_is_caught_only_if_no_attempt_before_it_may_have_had_the_effect(not_done):
    bench = Bench(emit.options(retries=1, backoff=0.0, catch_exceptions=True).bind(0))
    bench.land()
    assert not bench.ran["emit"][-1].last
    bench.fail("emit", not_done=not_done)
    assert bench.ran["emit"][-1].last is not_done


def test_an_error_is_not_caught_if_an_owner_before_may_have_had_the_effect():
    bench = Bench(emit.options(catch_exceptions=True).bind(0), [intent("emit")])
    assert not bench.ran["emit"][-1].last


def test_a_refused_cure_is_ordered_again():
    bench = Bench(send.bind(0), [intent("send")])
    bench.refuse("send")
    first, second = bench.ran["send"]
    assert (first.purpose, second.purpose) == (Purpose.RESOLVE, Purpose.RESOLVE)
    assert first.attempt != second.attempt
