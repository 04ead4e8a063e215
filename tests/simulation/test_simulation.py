"""The core under seeded faults: random DAGs and loops, crashes anywhere, lost workers and actors."""

from __future__ import annotations

import functools
import os

import pytest

import exoflow
from exoflow.plan import build
from exoflow.records import Status
from exoflow.testing import Crashed, Faults, Simulation, crash_states, run_to_end
from tests.simulation import flows

RUNS = int(os.environ.get("EXOFLOW_SIMULATIONS", "300"))
ROUGH = Faults(lose_worker=0.03, lose_actor=0.005, crash=0.02)


@pytest.fixture(autouse=True)
def _fresh_effects():
    flows.effects.clear()


def loop_plan(mode: str, last: int = 6, snapshot_every: int = 1, audit_every: int = 0, keep: int = 1):
    body = functools.partial(flows.body, mode, last, snapshot_every, audit_every)
    return build(exoflow.loop(body, [], keep=keep, max_in_flight=3, archive=flows.archive))


def judge(simulation: Simulation) -> None:
    seen: dict[str, object] = {}
    flows.assert_one_value_per_task(simulation.result(), seen)
    for key, told in flows.effects.items():
        assert all(each == told[0] for each in told), f"effect {key} had several values"
        flows.assert_one_value_per_task(["", 0, "", told[0]], seen)
    simulation.verify()


@pytest.mark.parametrize("chunk", range(10))
def test_random_dags_keep_one_history_through_crashes(chunk):
    for seed in range(chunk * RUNS // 10, (chunk + 1) * RUNS // 10):
        flows.effects.clear()
        simulation = run_to_end(build(flows.random_dag(seed)), seed=seed, faults=ROUGH)
        assert simulation.end is not None, seed
        if simulation.end.status is Status.SUCCESSFUL:
            judge(simulation)
        else:
            assert "died" in (simulation.end.error or ""), (seed, simulation.end)


@pytest.mark.parametrize("mode", flows.MODES)
@pytest.mark.parametrize(("snapshot_every", "audit_every"), [(1, 0), (1, 2), (3, 0), (3, 2)])
def test_loops_come_to_the_same_carry_through_crashes(mode, snapshot_every, audit_every):
    plan = loop_plan(mode, 8, snapshot_every, audit_every)
    crash = 0.002 if mode == "none" else 0.01
    for seed in range(RUNS // 12):
        flows.effects.clear()
        faults = Faults(lose_worker=0.01, lose_actor=0.002, crash=crash)
        simulation = run_to_end(plan, seed=seed, faults=faults)
        if simulation.end.status is Status.SUCCESSFUL:
            assert simulation.result() == flows.expected_carry(8), seed
            judge(simulation)
        else:
            assert "died" in simulation.end.error, (seed, simulation.end)


@pytest.mark.parametrize("mode", flows.MODES)
def test_every_point_of_a_small_loops_write_log_resumes_to_the_same_answer(mode):
    plan = loop_plan(mode, 4, audit_every=2)
    first = Simulation(plan, seed=1, fold_every=3)
    first.run()
    expected = flows.expected_carry(4)
    assert first.result() == expected
    states = 0
    for point, landed, objects in crash_states(first.log):
        again = Simulation(plan, objects, seed=2, fold_every=3)
        assert again.run() is Status.SUCCESSFUL, (point, landed)
        assert again.result() == expected, (point, landed)
        again.verify()
        states += 1
    assert states > len(first.log)


def test_every_point_of_random_dags_write_logs_keeps_one_history():
    for seed in range(25):
        flows.effects.clear()
        plan = build(flows.random_dag(seed))
        first = Simulation(plan, seed=seed)
        first.run()
        for _, _, objects in crash_states(first.log, max_in_flight=3):
            flows.effects.clear()
            again = Simulation(plan, objects, seed=seed + 1)
            assert again.run() is Status.SUCCESSFUL
            judge(again)


def test_a_crash_is_possible_in_the_simulator():
    with pytest.raises(Crashed):
        Simulation(loop_plan("async"), seed=0, faults=Faults(crash=1.0)).run()
