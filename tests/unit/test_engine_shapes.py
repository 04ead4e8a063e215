"""Shapes of workflows that once went wrong, or might: run by the simulator, crashed at every point."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import pytest

import exoflow
from exoflow.dag import Node
from exoflow.plan import build
from exoflow.records import Status
from exoflow.testing import Crashed, Faults, Simulation, crash_states, run_to_end

MODES = ("none", "async", "sync")
_draws = itertools.count()


@exoflow.task(deterministic=True)
def give(value: Any) -> Any:
    return value


@exoflow.task(deterministic=True)
def both(left: Any, right: Any) -> Any:
    return [left, right]


@exoflow.task
def draw() -> int:
    return next(_draws)


@exoflow.task(deterministic=True)
def nothing(*_: Any) -> None:
    return None


@exoflow.task(deterministic=True)
def more(carry: Any, last: int) -> Any:
    grown = [*carry, len(carry) + 1]
    return exoflow.stop(grown) if len(grown) == last else grown


@exoflow.task(deterministic=True)
def sum_of(values: dict[str, Any]) -> Any:
    return sum(values["all"]) + sum(values["pair"])


@exoflow.actor(deterministic=True)
class Tape:
    """Remembers everything it is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, item: Any) -> list[Any]:
        self.told = [*self.told, item]
        return self.told

    def capture(self) -> list[Any]:
        return list(self.told)

    def restore(self, told: list[Any]) -> None:
        self.told = told


def count_body(mode: str, last: int, carry: Node, i: int) -> Node:
    return more.options(checkpoint=mode).bind(carry, last)


def tell_body(mode: str, last: int, label: str, carry: Node, i: int) -> Node:
    tape = Tape.options(name="tape", checkpoint=mode).bind()
    told = tape.tell.bind([label, i])
    return ending.options(checkpoint=mode).bind(told, label, last)


@exoflow.task(deterministic=True)
def ending(told: list[Any], label: str, last: int) -> Any:
    mine = [item for item in told if item[0] == label]
    return exoflow.stop(told) if len(mine) == last else told


def expected_of(node: Node, expected: Any, *, every_crash: bool = True, fold_every: int = 2) -> Simulation:
    """Run undisturbed, from crashes all over the write log, and under faults: always the same answer."""
    plan = build(node)
    first = Simulation(plan, seed=1, fold_every=fold_every)
    assert first.run() is Status.SUCCESSFUL, first.end
    assert first.result() == expected
    first.verify()
    for seed in range(4):
        rough = run_to_end(plan, seed=seed, faults=Faults(lose_worker=0.02, lose_actor=0.01, crash=0.02))
        assert rough.end is not None
        if rough.end.status is Status.SUCCESSFUL:
            assert rough.result() == expected, seed
        else:
            assert "died" in (rough.end.error or ""), rough.end
    if every_crash:
        states = list(crash_states(first.log, max_in_flight=1))
        for point, landed, objects in states[:: len(states) // 50 + 1]:
            again = Simulation(plan, objects, seed=2, fold_every=fold_every)
            assert again.run() is Status.SUCCESSFUL, (point, landed)
            assert again.result() == expected, (point, landed)
    return first


def counting(mode: str, last: int, carry: Any = (), **bounds: Any) -> Node:
    return exoflow.loop(functools.partial(count_body, mode, last), carry or [], **bounds)


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_may_stop_in_its_first_iteration(mode):
    expected_of(counting(mode, 1), [1])


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_of_one_iteration_over_a_constant_carry(mode):
    expected_of(counting(mode, 99, iterations=1), [1])


@pytest.mark.parametrize("mode", MODES)
def test_one_iteration_in_flight(mode):
    expected_of(counting(mode, 5, max_in_flight=1), [1, 2, 3, 4, 5])


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_followed_by_tasks(mode):
    node = both.options(checkpoint=mode).bind(counting(mode, 3), give.options(checkpoint=mode).bind("x"))
    expected_of(node, [[1, 2, 3], "x"])


@pytest.mark.parametrize("mode", MODES)
def test_a_task_read_by_a_loop_and_again_after_it(mode):
    first = give.options(checkpoint=mode).bind([])
    node = both.options(checkpoint=mode).bind(counting(mode, 6, first), first)
    expected_of(node, [[1, 2, 3, 4, 5, 6], []])


@pytest.mark.parametrize("mode", MODES)
def test_two_loops_in_sequence(mode):
    first = exoflow.loop(functools.partial(count_body, mode, 3), [])
    second = exoflow.loop(functools.partial(count_body, mode, 7), first)
    expected_of(second, [1, 2, 3, 4, 5, 6, 7])


def test_two_loops_with_equal_bodies_do_not_share_task_ids():
    left, right = counting("sync", 3), counting("sync", 4)
    expected_of(both.bind(left, right), [[1, 2, 3], [1, 2, 3, 4]])


@pytest.mark.parametrize("mode", MODES)
def test_two_loops_in_sequence_over_one_actor(mode):
    first = exoflow.loop(functools.partial(tell_body, mode, 3, "a"), [], max_in_flight=3)
    second = exoflow.loop(functools.partial(tell_body, mode, 6, "b"), first, max_in_flight=3)
    told = [["a", i] for i in range(1, 4)] + [["b", i] for i in range(1, 7)]
    expected_of(second, told)


def mixed_body(mode: str, last: int, carry: Node, i: int) -> Node:
    tape = Numbers.options(name="numbers", checkpoint=mode).bind()
    told = tape.tell.bind(i)
    return same_length.options(checkpoint="none").bind(told, last)


@exoflow.actor
class Numbers(Tape.__exoflow_wraps__):
    """A tape that does not do the same thing twice."""

    def tell(self, item: Any) -> list[Any]:
        return super().tell([item, next(_draws)])


@exoflow.task(deterministic=True)
def same_length(told: list[Any], last: int) -> Any:
    return exoflow.stop(told) if len(told) == last else told


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_an_actor_with_checkpoints_under_a_carry_without(mode):
    plan = build(exoflow.loop(functools.partial(mixed_body, mode, 7), [], max_in_flight=2))
    first = Simulation(plan, seed=1)
    first.run()
    for point, landed, objects in crash_states(first.log, max_in_flight=2):
        again = Simulation(plan, objects, seed=2)
        committed = dict(again.core.history.committed)
        assert again.run() is Status.SUCCESSFUL, (point, landed)
        told = again.result()
        assert [item for item, _ in told] == list(range(1, 8)), (point, landed)
        for record in committed.values():
            if record.actor is not None:
                seen = json.loads(record.output.data)
                assert told[: len(seen)] == seen, (point, landed, record.task)


@pytest.mark.parametrize("mode", MODES)
def test_an_actor_before_inside_and_after_a_loop(mode):
    tape = Tape.options(name="tape", checkpoint=mode).bind()
    begun = tape.tell.bind(["start", 0])
    loop = exoflow.loop(functools.partial(tell_body, mode, 4, "a"), begun, max_in_flight=3)
    after = tape.tell.options(name="after").bind(loop)
    told = [["start", 0], *(["a", i] for i in range(1, 5))]
    expected_of(after, [*told, told])


@pytest.mark.parametrize("mode", MODES)
def test_a_snapshot_asked_for_by_a_later_task(mode):
    tape = Tape.options(name="tape", checkpoint=mode).bind()
    told = tape.tell.bind(1)
    further = tape.tell.options(name="further").bind(2)
    expected_of(both.options(checkpoint=mode).bind(told.snapshot(), further), [[1], [1, 2]])


@pytest.mark.parametrize("mode", MODES)
def test_a_snapshot_asked_for_after_a_loop(mode):
    tape = Tape.options(name="tape", checkpoint=mode).bind()
    told = tape.tell.bind(1)
    carried = counting(mode, 3, give.options(checkpoint=mode).bind([]))
    told >> carried
    expected_of(both.options(checkpoint=mode).bind(carried, told.snapshot()), [[1, 2, 3], [1]])


@pytest.mark.parametrize("mode", MODES)
def test_a_task_between_two_loops(mode):
    between = both.options(checkpoint=mode).bind(counting(mode, 2), "between")
    node = exoflow.loop(functools.partial(count_body, mode, 5), between)
    expected_of(node, [[1, 2], "between", 3, 4, 5])


@pytest.mark.parametrize("mode", MODES)
def test_a_loop_starts_after_what_it_was_told_to(mode):
    order = nothing.options(checkpoint=mode).bind()
    loop = counting(mode, 2)
    order >> loop
    simulation = expected_of(loop, [1, 2])
    assert simulation.executions[0] == "nothing"


@pytest.mark.parametrize("mode", MODES)
def test_none_is_a_value_like_any_other(mode):
    node = both.options(checkpoint=mode).bind(nothing.options(checkpoint=mode).bind(), None)
    expected_of(node, [None, None])
    expected_of(nothing.options(checkpoint=mode).bind(), None)


def test_nodes_at_any_depth_of_the_arguments():
    leaves = [give.bind(number) for number in range(4)]
    expected_of(sum_of.bind({"all": leaves[:2], "pair": (leaves[2], give.bind(10))}), 13)


def bad_body(carry: Node, i: int) -> Node:
    return both.bind(carry, branch_on(i))


def branch_on(i: int) -> Node:
    return give.bind(i).also(noted.bind(i))


noted_iterations: list[int] = []


@exoflow.task(deterministic=True, checkpoint="async")
def noted(i: int) -> int:
    noted_iterations.append(i)
    return i


def test_branches_of_the_last_iteration_are_waited_for():
    noted_iterations.clear()
    simulation = Simulation(build(exoflow.loop(bad_body, None, iterations=3, max_in_flight=1)), seed=3)
    assert simulation.run() is Status.SUCCESSFUL
    assert sorted(noted_iterations) == [1, 2, 3]
    assert "noted[3]" in simulation.core.history.committed


@exoflow.task(deterministic=True)
def returns_a_node() -> Any:
    return give.bind(1)


@exoflow.task
def stops() -> Any:
    return exoflow.stop(1)


@pytest.mark.parametrize("mode", MODES)
def test_stop_outside_a_loop_is_an_error_that_says_so(mode):
    simulation = Simulation(build(give.bind(stops.options(checkpoint=mode).bind())), seed=1)
    assert simulation.run() is Status.FAILED
    assert simulation.end.task == "stops"
    assert "carry" in simulation.end.error


def test_a_task_that_returns_a_node_fails_and_says_so():
    simulation = Simulation(build(returns_a_node.bind()), seed=1)
    assert simulation.run() is Status.FAILED
    assert "returned a bound task" in simulation.end.error


# --- what a crash must not mix ------------------------------------------------------------------------------

effects: dict[str, list[Any]] = {}


@exoflow.task(external=True, idempotent=True, checkpoint="async")
def publish(value: Any) -> int:
    effects.setdefault(exoflow.context().idempotency_key, []).append(value)
    return 0


def drawn_body(every: int, carry: Node, i: int) -> Node:
    tape = Tape.options(name="tape", checkpoint="none").bind()
    told = tape.tell.bind(draw.options(checkpoint="none").bind())
    node = both_last.bind(told, 12)
    if i % every == 0:
        node.also(publish.bind(told))
    return node


@exoflow.task(deterministic=True, checkpoint="none")
def both_last(told: list[Any], last: int) -> Any:
    return exoflow.stop(told) if len(told) == last else told


def test_an_effect_late_in_a_loop_without_checkpoints_agrees_with_the_replayed_loop():
    plan = build(exoflow.loop(functools.partial(drawn_body, 8), [], max_in_flight=2))
    crashes = 0
    for seed in range(30):
        effects.clear()
        objects: dict[str, bytes] = {}
        for tenure in itertools.count():
            faults = Faults(crash=0.004 if tenure < 3 else 0.0)
            simulation = Simulation(plan, objects, seed=seed * 100 + tenure, faults=faults)
            try:
                simulation.run()
            except Crashed:
                crashes += 1
                objects = dict(simulation.store.objects)
                continue
            break
        result = simulation.result()
        for told in effects.values():
            assert all(each == result[: len(each)] for each in told), seed
    assert crashes > 10
