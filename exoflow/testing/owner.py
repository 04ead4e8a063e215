"""A simulated controller: one owner's tenure, from reading the journal to its end.

The core, the claim, the appends, collection and sweep are the engine's own; simulated are only the threads.
There is no heartbeat: it merely advises when a claim may be tried, and here one may be tried at any moment.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from functools import partial

from exoflow.collection import archive, claim, collect, sweep
from exoflow.controller import expander
from exoflow.errors import CorruptRecord, ExoflowError, Fenced, StorageUnavailable, WorkflowNotFound
from exoflow.journal import Owner as OwnerName
from exoflow.journal import Tenure, read_steps
from exoflow.layout import Expand
from exoflow.messages import (
    Append,
    Appended,
    Archive,
    Collect,
    Complete,
    Event,
    Instruction,
    Persist,
    Release,
    StartActor,
    StopActor,
    Submit,
    Wake,
    Woken,
)
from exoflow.plan import Plan
from exoflow.records import History, Record, Started, Status
from exoflow.state import WorkflowState
from exoflow.steps import Steps
from exoflow.testing.faults import LEASE_SECONDS
from exoflow.testing.workers import Workers
from exoflow.testing.world import Process, Violation, World

WORKFLOW_ID = "simulated"


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What is run, and by whom: planted bugs put their own classes here."""

    plan: Plan
    fold_every: int = 8
    core: type[WorkflowState] = WorkflowState
    owner: type[Owner] | None = None
    workers: type[Workers] = Workers
    expand: Expand = dataclasses.field(default_factory=expander)


class Owner(Process):
    """One tenure.

    Parameters
    ----------
    number : int
        Which tenure of this world; names its writes.
    executed : callable
        Is told the task of each body that runs.

    Attributes
    ----------
    core : WorkflowState or None
        Once claimed.
    end : Complete or None
        Once the workflow has ended in this tenure.
    error : ExoflowError or None
        What stopped it.
    """

    def __init__(self, world: World, setting: Setting, number: int, executed: Callable[[str], None]) -> None:
        super().__init__(f"owner {number}")
        self.core: WorkflowState | None = None
        self.end: Complete | None = None
        self.error: ExoflowError | None = None
        self.world = world
        self.setting = setting
        nonces = iter(range(1_000_000))
        name = OwnerName("simulated", "boot", number, 1, self.name)
        self.tenure = self.make_tenure(name, lambda: f"{number}-{next(nonces)}")
        self.workers = setting.workers(world, f"workers of {self.name}", WORKFLOW_ID, self.tell, executed)
        self._to_write: deque[Archive | Append | Collect] = deque()
        self._writing = False
        self._appending = False
        world.note(f"{self.name} starts")
        world.run(self, self._claim(), self._claimed, self.stop)

    def make_tenure(self, name: OwnerName, new_nonce: Callable[[], str]) -> Tenure:
        """Return this owner's end of the journal."""
        return Tenure(WORKFLOW_ID, name, new_nonce, clock=self.clock, monotonic=self.clock)

    def clock(self) -> float:
        """Return the world's time, as this process sees it."""
        return self.world.now

    def stop(self, error: ExoflowError) -> None:
        """End this process, as the error of a protocol does."""
        self.world.note(f"{self.name} stops: {type(error).__name__}")
        self.error = error
        self._exit()
        if not isinstance(error, Fenced | StorageUnavailable | CorruptRecord):
            raise error

    def crash(self) -> None:
        """End this process and all its workers at once."""
        self.world.kill(self.workers)
        self.world.kill(self)

    def _exit(self) -> None:
        self.workers.alive = self.alive = False

    # --- the claim --------------------------------------------------------------------------------------

    def _claim(self) -> Steps[History]:
        try:
            tail = yield from read_steps(WORKFLOW_ID)
        except WorkflowNotFound:
            tail = None
        if tail is not None and tail.history.finished is not None and tail.history.finished.status is Status.SUCCESSFUL:
            return tail.history
        first: list[Record] = [Started(self.setting.plan.digest, "nonce", self.world.now)] if tail is None else []
        found = yield from claim(WORKFLOW_ID, self.tenure, tail, first)
        history = History() if tail is None else tail.history
        history.reopen()
        history.add(first)
        yield from sweep(WORKFLOW_ID, found, history.blobs(), self.clock)
        return history

    def _claimed(self, history: History) -> None:
        setting = self.setting
        self.core = setting.core(setting.plan, history, setting.expand, fold_every=setting.fold_every)
        if history.finished is not None:
            self.end = Complete(history.finished.status)
            self._exit()
            return
        self._obey(self.core.start(self.world.now))

    # --- events and instructions ------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Send an event to the core; it may overtake others, be held up, and arrive twice."""
        world = self.world
        for _ in range(2 if world.chance(world.faults.double) else 1):
            world.later(self, partial(self._deliver, event), seconds=world.delay())

    def _deliver(self, event: Event) -> None:
        assert self.core is not None
        self._obey(self.core.apply(event, self.world.now))
        self.core.check_invariants()

    def _obey(self, instructions: list[Instruction]) -> None:
        for order in instructions:
            self._do(order)

    def _do(self, order: Instruction) -> None:
        match order:
            case Submit():
                self._submit(order)
            case StartActor():
                self.workers.start_actor(order)
            case StopActor():
                self.workers.stop_actor(order.actor, order.incarnation)
            case Persist():
                assert self.core is not None
                task = self.core.task(order.task)
                assert task is not None
                self.workers.persist(order, task.spec.actor)
            case Release():
                self.workers.release(order.task, order.attempt)
            case Wake():
                self.world.later(self, partial(self._deliver, Woken(order.task)), seconds=order.seconds)
            case Append() | Archive() | Collect():
                if isinstance(order, Append):
                    self._note_append()
                self._to_write.append(order)
                self._write()
            case Complete():
                self.end = order
                self._exit()

    def _note_append(self) -> None:
        if self._appending:
            message = f"{self.name} has two appends in flight"
            raise Violation(message)
        self._appending = True

    def _submit(self, order: Submit) -> None:
        attempt = self.workers.accept(order, self.tenure.generation)
        if not order.spec.options.external:
            self.workers.start(attempt)
            return
        sure = self.tenure.make_sure(LEASE_SECONDS / 2)
        self.world.run(self, sure, lambda _: self.workers.start(attempt), self.stop)

    # --- the writer -------------------------------------------------------------------------------------

    def _write(self) -> None:
        if self._writing or not self._to_write:
            return
        self._writing = True
        order = self._to_write.popleft()
        self.world.run(self, self._steps(order), partial(self._written, order), self.stop)

    def _steps(self, order: Archive | Append | Collect) -> Steps[float | None]:
        match order:
            case Append():
                return (yield from self.tenure.append(order.records, fold=order.fold))
            case Archive():
                yield from archive(self.world.store, WORKFLOW_ID, self.setting.plan, order)
            case Collect():
                yield from collect(WORKFLOW_ID, self.tenure, order, LEASE_SECONDS, self.clock)
        return None

    def _written(self, order: Archive | Append | Collect, at: float | None) -> None:
        self._writing = False
        if at is not None:
            self.world.later(self, partial(self._appended, at))
        self._write()

    def _appended(self, at: float) -> None:
        self._appending = False
        self._deliver(Appended(at))
