"""Branches that take turns: in order through any crash, and never too far behind the loop."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest

import exoflow
from exoflow.dag import Node
from exoflow.effects import turns_name
from exoflow.errors import DefinitionError
from exoflow.plan import build
from exoflow.records import Status
from exoflow.testing.simulation import Crashed, Faults, Simulation

happened: list[tuple[int, str, str]] = []
"""Iteration, key and name of the turns of every effect, in order."""
counted: list[int] = []


@exoflow.task(deterministic=True, checkpoint="async")
def count(carry: int, i: int) -> int:
    counted.append(i)
    return i


@exoflow.task(external=True, idempotent=True, checkpoint="async")
def tell(i: int, value: int) -> int:
    context = exoflow.context()
    happened.append((i, context.idempotency_key, context.turns))
    assert len(set(counted)) < i + MOST_BEHIND
    return value


MOST_BEHIND = 3


def body(every: int, carry: Node, i: int) -> Node:
    node = count.bind(carry, i)
    if i % every == 0:
        node.also(tell.bind(i, node).in_turn(max_behind=MOST_BEHIND))
    return node


@pytest.mark.parametrize("every", [1, 2])
def test_turns_come_in_order_whatever_crashes_and_the_loop_waits_for_them(every: int) -> None:
    plan = build(exoflow.loop(functools.partial(body, every), 0, iterations=40, max_in_flight=2))
    for seed in range(15):
        happened.clear()
        counted.clear()
        objects: dict[str, bytes] = {}
        for tenure in itertools.count():
            faults = Faults(crash=0.01 if tenure < 5 else 0.0)
            simulation = Simulation(plan, objects, seed=seed * 100 + tenure, faults=faults)
            try:
                assert simulation.run() is Status.SUCCESSFUL
                break
            except Crashed:
                objects = dict(simulation.store.objects)
        turns = [i for i, _, _ in happened]
        assert turns == sorted(turns)
        assert set(turns) == set(range(every, 41, every))
        assert len({(i, key) for i, key, _ in happened}) == len(set(turns))
        assert len({name for _, _, name in happened}) == 1


@exoflow.task(deterministic=True, checkpoint="async")
def last(i: int) -> Any:
    return exoflow.stop(i) if i == 3 else i


@exoflow.task(external=True, idempotent=True, checkpoint="async")
def show(value: int) -> int:
    shown.append(value)
    return value


shown: list[int] = []


def showing(carry: Node, i: int) -> Node:
    node = last.bind(i)
    return node.also(show.bind(node))


def test_a_branch_reads_the_carry_that_ends_the_loop() -> None:
    for seed in range(10):
        shown.clear()
        assert Simulation(build(exoflow.loop(showing, None)), seed=seed).run() is Status.SUCCESSFUL
        assert sorted(shown) == [1, 2, 3]


def test_the_name_of_turns_is_no_other_workflows() -> None:
    assert turns_name("nonce", "sink") == turns_name("nonce", "sink")
    assert len({turns_name("nonce", "sink"), turns_name("nonce", "sink_2"), turns_name("other", "sink")}) == 3


def test_outside_of_a_loop_nothing_takes_turns() -> None:
    with pytest.raises(DefinitionError, match="takes turns"):
        build(tell.bind(1, 2).in_turn(max_behind=1))
    with pytest.raises(DefinitionError, match="at least 1"):
        tell.bind(1, 2).in_turn(max_behind=0)


@exoflow.task(deterministic=True)
def name_of_turns() -> str:
    return exoflow.context().turns


def test_a_task_without_turns_has_no_name_for_them() -> None:
    simulation = Simulation(build(name_of_turns.bind()), seed=1)
    assert simulation.run() is Status.SUCCESSFUL
    assert simulation.result() == ""
