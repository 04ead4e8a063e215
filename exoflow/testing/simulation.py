"""One owner's tenure of a workflow, for tests that ask about this workflow and no other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from exoflow.messages import Complete
from exoflow.plan import Plan
from exoflow.records import Status
from exoflow.state import WorkflowState
from exoflow.storage import LocalStore, MemoryStore
from exoflow.testing.faults import CALM, Faults
from exoflow.testing.life import CreationOrder
from exoflow.testing.oracle import Judge
from exoflow.testing.owner import WORKFLOW_ID, Owner, Setting
from exoflow.testing.world import Violation, World

_MAX_STEPS = 200_000


class Crashed(Exception):
    """The simulated owner died."""


class Simulation:
    """One tenure, from a claim on what the store holds to its end.

    Parameters
    ----------
    plan : Plan
        The workflow.
    objects : mapping, optional
        What the store holds; a crash's leftovers, or nothing.
    seed : int
        Decides the order of everything and where faults strike.
    faults : Faults
        How often they strike.
    fold_every : int
        Objects between two folds.
    core : type
        The core to run.
    store : LocalStore, optional
        The store itself, instead of ``objects``.

    Attributes
    ----------
    log : list of LogEntry
        The write log, for `crash_states`.
    executions : list of str
        The tasks whose bodies ran, in order.
    """

    def __init__(
        self,
        plan: Plan,
        objects: Mapping[str, bytes] | None = None,
        *,
        seed: int = 0,
        faults: Faults = CALM,
        fold_every: int = 8,
        core: type[WorkflowState] = WorkflowState,
        store: LocalStore | None = None,
    ) -> None:
        self.seed = seed
        self.store: MemoryStore | LocalStore = store or CreationOrder(dict(objects or {}))
        self.executions: list[str] = []
        setting = Setting(plan, fold_every, core)
        self.world = World(self.store, seed, CALM)
        self._judge = Judge(self.store, WORKFLOW_ID, plan, setting.expand)
        self.world.landing.append(self._judge.watch)
        self._owner = Owner(self.world, setting, seed, self.executions.append)
        while self._owner.core is None and self.world.step():
            pass
        self.world.faults = faults

    @property
    def log(self) -> list[Any]:
        """The write log."""
        return self.world.log

    @property
    def core(self) -> WorkflowState:
        """The core of the tenure."""
        assert self._owner.core is not None
        return self._owner.core

    @property
    def end(self) -> Complete | None:
        """How the workflow ended."""
        return self._owner.end

    def run(self) -> Status:
        """Run to the end.

        Raises
        ------
        Crashed
            When a simulated crash strikes first.
        Violation
            When the engine broke a promise.
        """
        world, owner = self.world, self._owner
        while owner.alive:
            if world.chance(world.faults.crash):
                owner.crash()
                raise Crashed
            if world.chance(world.faults.lose_actor):
                owner.workers.lose_member()
            if world.steps > _MAX_STEPS or not world.step():
                message = f"no end after {world.steps} steps (seed {self.seed})"
                raise Violation(message)
        if owner.error is not None:
            raise owner.error
        assert owner.end is not None
        return owner.end.status

    def settle(self) -> None:
        """Let land what a crash has left in flight."""
        while self.world.step():
            pass

    def result(self) -> Any:
        """Return the workflow's result as a reader of the store finds it."""
        return self._judge.result()

    def verify(self) -> None:
        """Check that all that counts is whole; raises Violation."""
        self._judge.judge_end()

    def verify_effects(self) -> None:
        """Check what has happened in `exoflow.testing.outside`; raises Violation."""
        self._judge.judge_effects()


def run_to_end(
    plan: Plan, *, seed: int = 0, faults: Faults = CALM, objects: Mapping[str, bytes] | None = None, **setting: Any
) -> Simulation:
    """Simulate a workflow through any number of crashes until it ends; return the last tenure."""
    kept = dict(objects or {})
    for tenure in itertools.count():
        simulation = Simulation(plan, kept, seed=seed * 1009 + tenure, faults=faults, **setting)
        try:
            simulation.run()
        except Crashed:
            simulation.settle()
            assert isinstance(simulation.store, MemoryStore)
            kept = simulation.store.objects
            continue
        return simulation
    raise AssertionError
