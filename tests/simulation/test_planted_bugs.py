"""Every rule of the engine broken on purpose: the simulator's oracles must notice within LIMIT runs.

The planted cores switch `check_invariants` off, so that what catches them is what a user would see.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import exoflow
from exoflow.dag import Node
from exoflow.messages import Collect, Instruction, StartActor, StopActor, Submit
from exoflow.plan import Plan, TaskSpec, build
from exoflow.records import Status
from exoflow.recovery import Action
from exoflow.state import Durability, TaskState, WorkflowState
from exoflow.testing import Crashed, Faults, Simulation, crash_states
from tests.simulation import flows

LIMIT = 200
LAST = 6
Simulate = Callable[..., Simulation]


@pytest.fixture(autouse=True)
def _fresh_effects():
    flows.effects.clear()


class Unchecked(WorkflowState):
    """A core whose own assertions are off."""

    def check_invariants(self) -> None:
        pass


# --- the bugs -----------------------------------------------------------------------------------------------


class RecordBeforeBlob(Simulation):
    def _land_then(self, writes: list[tuple[str, bytes]], after: Callable[[], None]) -> None:
        if any("/blobs/" in key for key, _ in writes):
            after()
            super()._land_then(writes, lambda: None)
        else:
            super()._land_then(writes, after)


class NoPrefix(Unchecked):
    def _want(self, task: TaskState) -> None:
        if task.durability is Durability.UNWANTED:
            task.durability = Durability.WANTED
            self._begin_checkpoint(task)


class CommitBeforeAncestors(Unchecked):
    def _ancestors_written(self, task: TaskState) -> bool:
        return True


class PastTheStop(Unchecked):
    def _confirmed(self, task: TaskState) -> bool:
        return True


class EffectWithoutIntent(Unchecked):
    def _try_start(self, task_id: str) -> None:
        if task_id in self._tasks:
            self._tasks[task_id].intended = True
        super()._try_start(task_id)


class CollectsLiveBlobs(Unchecked):
    def _on_appended(self, at: float) -> None:
        dead = tuple(self._collectable)
        super()._on_appended(at)
        self._out = [Collect(dead) if isinstance(order, Collect) else order for order in self._out]


class NoReplay(Unchecked):
    def _decide(self, specs: Sequence[TaskSpec], branches: set[str]) -> dict[str, Action]:
        decided = super()._decide(specs, branches)
        return {name: Action.DONE if each is Action.REPLAY else each for name, each in decided.items()}


class TwoAppends(Unchecked):
    def _append_what_is_ready(self) -> None:
        self._writing = None
        super()._append_what_is_ready()


class SurvivorsGoOn(Simulation):
    """Actors that did not die keep the state they are in, although the workflow goes back."""

    def _obey(self, instructions: list[Instruction]) -> None:
        super()._obey([order for order in instructions if not isinstance(order, StopActor)])

    def _start_actor(self, order: StartActor) -> None:
        known = self._members.get(order.spec.id)
        super()._start_actor(order)
        if known is not None:
            token = self._members[order.spec.id][2].token
            known[2].token = token
            self._members[order.spec.id] = (order.spec, order.incarnation, known[2])


class AnyCallGoes(Simulation):
    """An actor runs whatever call arrives, without asking which state the call expects."""

    def _runnable(self, order: Submit, inputs: list[list[Any]]) -> bool:
        return all(inputs) and (order.spec.actor is None or order.spec.actor in self._members)


# --- what to run, and the oracles ---------------------------------------------------------------------------


def ledger_plan(mode: str, *, snapshot_every: int = 1, audit_every: int = 0) -> Plan:
    body = functools.partial(flows.body, mode, LAST, snapshot_every, audit_every)
    return build(exoflow.loop(body, [], max_in_flight=3))


@exoflow.task(deterministic=True)
def agree(carry: list[Any], left: list[Any], right: list[Any], last: int) -> Any:
    grown = [*carry, [left, right]]
    return exoflow.stop(grown) if len(grown) == last else grown


def two_ledgers(mode: str, carry: Node, i: int) -> Node:
    left = flows.Ledger.options(name="left", checkpoint=mode).bind().tell.bind(i)
    right = flows.Ledger.options(name="right", checkpoint=mode).bind().tell.bind(i)
    return agree.options(checkpoint=mode).bind(carry, left, right, LAST)


@exoflow.actor(deterministic=True)
class Shelf:
    """An actor whose state names blobs that earlier calls wrote, and never writes them again."""

    def __init__(self) -> None:
        self.blobs: list[exoflow.Blob] = []

    def put(self, number: int) -> list[exoflow.Blob]:
        self.blobs = [*self.blobs, exoflow.context().write_blob(b"%d" % number)]
        return self.blobs

    def capture(self) -> list[exoflow.Blob]:
        return list(self.blobs)

    def restore(self, blobs: list[exoflow.Blob]) -> None:
        self.blobs = blobs


@exoflow.task(deterministic=True)
def length(shelf: list[exoflow.Blob], last: int) -> Any:
    return exoflow.stop(len(shelf)) if len(shelf) == last else len(shelf)


def shelf_body(carry: Node, i: int) -> Node:
    return length.bind(Shelf.options(name="shelf").bind().put.bind(i), LAST)


def judge(simulation: Simulation, expected: Any = None) -> None:
    """Ask every oracle about a workflow that has ended."""
    assert simulation.end is not None
    if simulation.end.status is not Status.SUCCESSFUL:
        assert "died" in (simulation.end.error or ""), simulation.end
        return
    simulation.verify()
    result = simulation.result()
    assert expected is None or result == expected
    seen: dict[str, object] = {}
    flows.assert_one_value_per_task(result, seen)
    for told in flows.effects.values():
        assert all(each == told[0] for each in told)
        flows.assert_one_value_per_task(["", 0, "", told[0]], seen)
    flows.assert_nothing_past_the_end(simulation.core.history, LAST)


def through_crashes(simulate: Simulate, plan: Plan, seed: int, faults: Faults) -> Simulation:
    objects: dict[str, bytes] = {}
    for tenure in itertools.count():
        simulation = simulate(plan, objects, seed=seed * 1009 + tenure, faults=faults, fold_every=3)
        try:
            simulation.run()
        except Crashed:
            objects = dict(simulation.store.objects)  # type: ignore[union-attr]
            continue
        return simulation
    raise AssertionError


def dag_runs(simulate: Simulate) -> Iterator[Callable[[], None]]:
    faults = Faults(lose_worker=0.03, crash=0.03)
    for seed in itertools.count():
        plan = build(flows.random_dag(seed))
        yield lambda plan=plan, seed=seed: judge(through_crashes(simulate, plan, seed, faults))


def loop_runs(
    simulate: Simulate, plan: Plan, expected: Any, *, crash: float = 0.03, lose_actor: float = 0.01
) -> Iterator[Callable[[], None]]:
    faults = Faults(lose_actor=lose_actor, crash=crash)
    for seed in itertools.count():
        yield lambda seed=seed: judge(through_crashes(simulate, plan, seed, faults), expected)


def crash_runs(simulate: Simulate, plan: Plan, expected: Any) -> Iterator[Callable[[], None]]:
    """Run once, then resume from every state that a crash may leave."""
    for seed in itertools.count():
        first = simulate(plan, seed=seed, fold_every=3)

        def begin(first: Simulation = first) -> None:
            first.run()
            judge(first, expected)

        yield begin
        for _, _, objects in crash_states(first.log, max_in_flight=2):

            def resume(objects: dict[str, bytes] = objects, seed: int = seed) -> None:
                again = simulate(plan, objects, seed=seed + 1, fold_every=3)
                again.run()
                judge(again, expected)

            yield resume


def runs_until_caught(runs: Iterator[Callable[[], None]], limit: int = LIMIT) -> int | None:
    """Return how many runs it takes until an oracle notices; None when none does."""
    for number, run in enumerate(itertools.islice(runs, limit), 1):
        flows.effects.clear()
        try:
            run()
        except Exception:
            return number
    return None


def with_core(core: type[WorkflowState]) -> Simulate:
    return functools.partial(Simulation, core=core)


CARRY = flows.expected_carry(LAST)
BOTH = [[list(range(1, i + 1))] * 2 for i in range(1, LAST + 1)]
PLANTED: dict[str, tuple[int, Callable[[], Iterator[Callable[[], None]]]]] = {
    "record before its blob": (60, lambda: dag_runs(RecordBeforeBlob)),
    "prefix rule ignored": (60, lambda: dag_runs(with_core(NoPrefix))),
    "commit before its ancestors": (100, lambda: dag_runs(with_core(CommitBeforeAncestors))),
    "iterations past a stop": (
        60,
        lambda: loop_runs(with_core(PastTheStop), ledger_plan("async", audit_every=1), CARRY),
    ),
    "survivors not rolled back": (
        60,
        lambda: loop_runs(SurvivorsGoOn, build(exoflow.loop(functools.partial(two_ledgers, "async"), [])), BOTH),
    ),
    "calls of a state that is gone": (60, lambda: loop_runs(AnyCallGoes, ledger_plan("async"), CARRY)),
    "effect before its intent": (20, lambda: dag_runs(with_core(EffectWithoutIntent))),
    "live blobs collected": (
        60,
        lambda: loop_runs(with_core(CollectsLiveBlobs), build(exoflow.loop(shelf_body, 0)), LAST),
    ),
    "replay skipped": (
        60,
        lambda: crash_runs(with_core(NoReplay), ledger_plan("async", snapshot_every=3), CARRY),
    ),
    "two appends in flight": (20, lambda: dag_runs(with_core(TwoAppends))),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught(bug):
    limit, runs = PLANTED[bug]
    needed = runs_until_caught(runs(), limit)
    assert needed is not None, f"{bug}: no oracle noticed within {limit} runs"


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(lambda: dag_runs(with_core(Unchecked)), id="dags"),
        pytest.param(lambda: loop_runs(Simulation, ledger_plan("async", audit_every=1), CARRY), id="audits"),
        pytest.param(
            lambda: loop_runs(Simulation, build(exoflow.loop(functools.partial(two_ledgers, "async"), [])), BOTH),
            id="two-ledgers",
        ),
        pytest.param(lambda: loop_runs(Simulation, build(exoflow.loop(shelf_body, 0)), LAST), id="shelf"),
        pytest.param(lambda: crash_runs(Simulation, ledger_plan("async", snapshot_every=3), CARRY), id="replay"),
    ],
)
def test_the_same_oracles_have_nothing_to_say_of_the_engine_as_it_is(runs):
    assert runs_until_caught(runs(), 25) is None
