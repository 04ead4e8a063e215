"""What nobody waits for goes into one object with its loop's next carry, if that is due."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import exoflow
from exoflow.codec import Encoded
from exoflow.controller import expander
from exoflow.dag import Node
from exoflow.messages import Append, Appended, Event, Failed, Instruction, Produced, Report, Submit, Wake, Woken
from exoflow.plan import build
from exoflow.records import Committed, History, Started, Value
from exoflow.state import RIDE_SECONDS, WorkflowState

OUTPUT = Value.inline(Encoded("json", b"1"))


BACKOFF_SECONDS = 30.0


@exoflow.task(deterministic=True, retries=1, backoff=BACKOFF_SECONDS)
def step(*_: Any) -> int:
    return 1


def body_of(carry_mode: str) -> Any:
    def body(carry: Node, i: int) -> Node:
        beside = step.options(name="beside", checkpoint="async").bind(i)
        before = step.options(name="before", checkpoint="async").bind(carry)
        return step.options(name="carry", checkpoint=carry_mode).bind(before, beside)

    return body


class Bench:
    """The core alone, on a loop; `running` holds every attempt by task."""

    def __init__(self, carry_mode: str = "sync") -> None:
        history = History()
        history.add([Started("digest", "nonce", 0.0)])
        node = exoflow.loop(body_of(carry_mode), 0, iterations=3, max_in_flight=1)
        self.core = WorkflowState(build(node), history, expander())
        self.running: dict[str, int] = {}
        self.writing: Append | None = None
        self.wakes: list[Wake] = []
        self.now = 100.0
        self._obey(self.core.start(self.now))

    def _obey(self, orders: Sequence[Instruction]) -> None:
        for order in orders:
            match order:
                case Submit():
                    self.running[order.spec.id] = order.attempt
                case Append():
                    assert self.writing is None
                    self.writing = order
                case Wake():
                    self.wakes.append(order)

    def tell(self, event: Event) -> None:
        self._obey(self.core.apply(event, self.now))
        self.core.check_invariants()

    def produce(self, task: str) -> None:
        self.tell(Produced(task, self.running[task], Report(OUTPUT)))

    def written(self) -> list[str]:
        """Return the tasks whose records are being written."""
        return (
            [] if self.writing is None else [each.task for each in self.writing.records if isinstance(each, Committed)]
        )

    def land(self) -> None:
        self.writing = None
        self.tell(Appended(self.now))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_records_wait_for_the_carry_that_is_due_and_go_with_it(mode):
    bench = Bench(mode)
    bench.produce("beside[1]")
    bench.produce("before[1]")
    assert not bench.written()
    bench.produce("carry[1]")
    assert sorted(bench.written()) == ["before[1]", "beside[1]", "carry[1]"]
    bench.land()
    assert "carry[2]" in bench.running


def test_a_carry_that_is_not_yet_durable_is_waited_for_too():
    bench = Bench()
    bench.produce("beside[1]")
    bench.tell(Produced("carry[1]", bench.running["carry[1]"], Report(OUTPUT)))
    assert not bench.written()
    bench.produce("before[1]")
    assert sorted(bench.written()) == ["before[1]", "beside[1]", "carry[1]"]


def test_no_record_waits_longer_than_a_moment():
    bench = Bench()
    bench.produce("before[1]")
    assert [wake.seconds for wake in bench.wakes] == [RIDE_SECONDS]
    bench.now += RIDE_SECONDS / 2
    bench.produce("beside[1]")
    assert not bench.written()
    bench.now += RIDE_SECONDS / 2
    bench.tell(Woken(bench.wakes[0].task))
    assert sorted(bench.written()) == ["before[1]", "beside[1]"]


def test_a_clock_that_goes_back_makes_nobody_wait():
    bench = Bench()
    bench.produce("before[1]")
    bench.now -= 3600
    bench.tell(Woken(bench.wakes[0].task))
    assert bench.written() == ["before[1]"]


def test_nothing_waits_for_a_carry_that_is_not_kept():
    bench = Bench("none")
    bench.produce("before[1]")
    assert bench.written() == ["before[1]"]


def test_a_workflow_that_fails_does_not_wait():
    bench = Bench()
    bench.produce("before[1]")
    bench.tell(Failed("carry[1]", bench.running["carry[1]"], "Boom", no_retry=True))
    assert "before[1]" in bench.written()


def test_the_end_of_the_wait_does_not_end_the_pause_before_a_retry():
    bench = Bench()
    for task in ("before[1]", "beside[1]"):
        bench.produce(task)
    attempt = bench.running["carry[1]"]
    bench.tell(Failed("carry[1]", attempt, "Boom"))
    ride, pause = bench.wakes
    assert (ride.seconds, pause.seconds) == (RIDE_SECONDS, BACKOFF_SECONDS)
    bench.now += RIDE_SECONDS
    bench.tell(Woken(ride.task))
    assert bench.running["carry[1]"] == attempt
    bench.tell(Woken(pause.task))
    assert bench.running["carry[1]"] > attempt
