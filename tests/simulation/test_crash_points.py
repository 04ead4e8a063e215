"""Small workflows stopped at every point of their write logs, with every subset of the writes in flight."""

from __future__ import annotations

import functools
import itertools
import os

import pytest

import exoflow
from exoflow.plan import build
from exoflow.records import Status
from exoflow.testing import Crashed, Faults, Simulation, crash_states, run_to_end
from exoflow.testing.explore import explore, small_plans
from tests.simulation import flows

TASKS = int(os.environ.get("EXOFLOW_SMALL_TASKS", "2"))
CHUNKS = 8

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_small_workflow_survives_a_crash_at_every_point(chunk: int) -> None:
    plans = states = 0
    for shown, plan in itertools.islice(small_plans(TASKS), chunk, None, CHUNKS):
        try:
            states += explore(plan)
        except AssertionError as error:
            pytest.fail(f"{shown}: {error}")
        plans += 1
    assert states > 5 * plans > 0


def loop_plan(mode: str, last: int, snapshot_every: int = 1, audit_every: int = 0):
    body = functools.partial(flows.body, mode, last, snapshot_every, audit_every)
    return build(exoflow.loop(body, [], max_in_flight=3, archive=flows.archive))


@pytest.mark.parametrize("mode", flows.MODES)
def test_every_point_of_a_small_loops_write_log_resumes_to_the_same_answer(mode):
    plan = loop_plan(mode, 4, audit_every=2)
    first = Simulation(plan, seed=1, fold_every=3)
    first.run()
    expected = flows.expected_carry(4)
    assert first.result() == expected
    states = 0
    for point, landed, objects in crash_states(first.log, max_in_flight=3):
        again = Simulation(plan, objects, seed=2, fold_every=3)
        assert again.run() is Status.SUCCESSFUL, (point, landed)
        assert again.result() == expected, (point, landed)
        states += 1
    assert states > len(first.log)


@pytest.mark.parametrize("mode", flows.MODES)
@pytest.mark.parametrize(("snapshot_every", "audit_every"), [(1, 0), (1, 2), (3, 0), (3, 2)])
def test_loops_come_to_the_same_carry_through_crashes(mode, snapshot_every, audit_every):
    plan = loop_plan(mode, 8, snapshot_every, audit_every)
    faults = Faults(lose_worker=0.01, lose_actor=0.002, crash=0.002 if mode == "none" else 0.01)
    for seed in range(10):
        simulation = run_to_end(plan, seed=seed, faults=faults)
        assert simulation.end is not None
        if simulation.end.status is Status.SUCCESSFUL:
            assert simulation.result() == flows.expected_carry(8), seed
        else:
            assert "died" in (simulation.end.error or ""), (seed, simulation.end)


def test_a_crash_is_possible_in_the_simulator():
    with pytest.raises(Crashed):
        Simulation(loop_plan("async", 6), seed=0, faults=Faults(crash=1.0)).run()
