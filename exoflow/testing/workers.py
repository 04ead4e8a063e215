"""Simulated workers and actors of one owner: the engine's own worker code, on a view of the store.

A body runs at one instant, when its inputs are there; what it writes then leaves for the store, and its
outcome is told when all of that is durable. In between, everything may die.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from exoflow import worker
from exoflow.blobs import Blobs
from exoflow.errors import StorageUnavailable
from exoflow.messages import (
    ActorLost,
    Event,
    Failed,
    Lost,
    Persist,
    Persisted,
    PersistFailed,
    Produced,
    Refused,
    Report,
    Settled,
    StartActor,
    Submit,
)
from exoflow.plan import ActorSpec
from exoflow.steps import Put
from exoflow.storage import Store
from exoflow.testing.world import Process, World
from exoflow.worker import Failure, Member, Refusal, Settlement, Unavailable

Cell = list[Any]
_GONE = object()
_URI = "memory://"


class View:
    """A store as one body sees it: reads go through, writes are kept back to be sent."""

    uri = _URI

    def __init__(self, below: Store) -> None:
        self._below = below
        self.writes: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """Return what this body wrote, or what the store holds."""
        return self.writes[key] if key in self.writes else self._below.get(key)

    def put(self, key: str, data: bytes) -> None:
        """Keep a write back."""
        self.writes[key] = data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Bodies do not race for keys."""
        raise NotImplementedError

    def list(self, prefix: str) -> list[str]:
        """Bodies list nothing."""
        raise NotImplementedError

    def delete(self, key: str) -> None:
        """Bodies delete nothing."""
        raise NotImplementedError


@dataclasses.dataclass(slots=True, eq=False)
class Attempt:
    """A submission, with hold of its inputs whatever is released later."""

    order: Submit
    inputs: list[Cell]
    value: Cell

    @property
    def name(self) -> tuple[str, int]:
        """Task and number."""
        return self.order.spec.id, self.order.attempt


@dataclasses.dataclass(slots=True, eq=False)
class _Actor:
    spec: ActorSpec
    incarnation: int
    member: Member


class Workers(Process):
    """Everything that runs bodies for one owner; it dies with it.

    Parameters
    ----------
    tell : callable
        Takes an event to the owner.
    executed : callable
        Is told the task of each body that runs.
    """

    def __init__(
        self, world: World, name: str, workflow_id: str, tell: Callable[[Event], None], executed: Callable[[str], None]
    ) -> None:
        super().__init__(name)
        self._world = world
        self._workflow_id = workflow_id
        self._tell_owner = tell
        self._executed = executed
        self._values: dict[tuple[str, int], Cell] = {}
        self._actors: dict[str, _Actor] = {}
        self._waiting: list[Attempt] = []

    # --- orders -----------------------------------------------------------------------------------------

    def accept(self, order: Submit) -> Attempt:
        """Take hold of the inputs of a submission."""
        inputs = [self._values[live.task, live.attempt] for live in worker.live_inputs(order)]
        value = self._values[order.spec.id, order.attempt] = []
        return Attempt(order, inputs, value)

    def start(self, attempt: Attempt) -> None:
        """Run an attempt as soon as its inputs are there."""
        self._waiting.append(attempt)
        self._look()

    def release(self, task: str, attempt: int) -> None:
        """Forget a value; attempts that were submitted keep hold of it."""
        self._values.pop((task, attempt), None)

    def start_actor(self, order: StartActor) -> None:
        """Create an actor's process."""
        member = Member(order.spec, self._workflow_id, self._world.store, 0, order.restore, None)
        member.start()
        self._actors[order.spec.id] = _Actor(order.spec, order.incarnation, member)
        self._look()

    def stop_actor(self, actor: str, incarnation: int) -> None:
        """End an actor's process."""
        known = self._actors.get(actor)
        if known is not None and known.incarnation == incarnation:
            del self._actors[actor]
            self._drop_calls(known)

    def lose_actor(self) -> None:
        """Let an actor die."""
        if self._actors:
            known = self._actors.pop(self._world.random.choice(sorted(self._actors)))
            self._drop_calls(known)
            self._world.note(f"actor {known.spec.id} dies")
            self._tell(ActorLost(known.spec.id, known.incarnation, "it died (simulated)"))

    def _drop_calls(self, known: _Actor) -> None:
        """Let the calls that waited for an actor have no value; that it is gone is told of the actor itself."""
        for attempt in self._waiting:
            call = attempt.order.call
            if attempt.order.spec.actor == known.spec.id and call is not None and call.incarnation == known.incarnation:
                attempt.value.append(_GONE)
        self._waiting = [attempt for attempt in self._waiting if _GONE not in attempt.value]
        self._look()

    def persist(self, order: Persist, actor: str | None) -> None:
        """Make an output, a captured state, or both durable."""
        value = self._values[order.task, order.attempt][0] if order.output else None
        known = self._actors.get(actor or "") if order.state else None
        if order.state and known is None:
            return
        self._world.later(self, partial(self._persist, order, value, known), seconds=self._world.delay())

    # --- bodies -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Let what has become runnable happen."""
        ready = [attempt for attempt in self._waiting if self._runnable(attempt)]
        if ready:
            self._waiting = [attempt for attempt in self._waiting if attempt not in ready]
        for attempt in ready:
            self._world.later(self, partial(self._begin, attempt), seconds=self._world.delay())

    def _runnable(self, attempt: Attempt) -> bool:
        if _GONE in _values(attempt):
            return True
        if not all(attempt.inputs):
            return False
        call = attempt.order.call
        if call is None:
            return True
        known = self._actors.get(attempt.order.spec.actor or "")
        if known is None or known.incarnation != call.incarnation:
            return False
        return not call.leaves or known.member.token == call.expects

    def _begin(self, attempt: Attempt) -> None:
        if not self._runnable(attempt):
            self._waiting.append(attempt)
            return
        if _GONE in _values(attempt):
            self._lose(attempt, "an input is gone (simulated)")
            return
        world, on_actor = self._world, attempt.order.spec.actor is not None
        lost = not on_actor and world.chance(world.faults.lose_worker)
        failed = not on_actor and world.chance(world.faults.fail_body)
        if (lost or failed) and world.chance(0.5):
            self._trouble(attempt, lost)
            return
        view = View(world.store)
        value, event = self._run(attempt, view)
        if lost or failed:
            self._trouble(attempt, lost)
            return

        def written(error: StorageUnavailable | None) -> None:
            attempt.value.append(value if error is None else Unavailable())
            self._tell(event if error is None else Failed(*attempt.name, str(error)))
            self._look()

        self._write(view, written)

    def _trouble(self, attempt: Attempt, lost: bool) -> None:
        if lost:
            self._lose(attempt, "its process died (simulated)")
        else:
            attempt.value.append(Unavailable())
            self._tell(Failed(*attempt.name, "it raised (simulated)"))
            self._look()

    def _lose(self, attempt: Attempt, reason: str) -> None:
        """Let an attempt end without a value: whoever waits for that is lost with it."""
        attempt.value.append(_GONE)
        self._tell(Lost(*attempt.name, reason))
        self._look()

    def _run(self, attempt: Attempt, view: View) -> tuple[Any, Event]:
        """Run what an attempt is for; return the value for consumers, and what to tell the owner."""
        order = attempt.order
        self._executed(order.spec.id)
        self._world.note(f"{order.purpose} of {order.spec.id} runs")
        values = _values(attempt)
        job = worker.make_job(order, self._workflow_id, _URI, [None] * len(values))
        if order.spec.actor is None:
            value, outcome = worker.run_task(job, values, view)
        else:
            member = self._actors[order.spec.actor].member
            member.blobs = Blobs(view, self._workflow_id)
            value, outcome = member.call(job, values)
        match outcome:
            case Report():
                return value, Produced(*attempt.name, outcome)
            case Failure():
                return value, Failed(*attempt.name, outcome.error, outcome.not_done)
            case Settlement():
                return value, Settled(*attempt.name, outcome.verdict, outcome.report)
            case Refusal():
                return value, Refused(*attempt.name)

    # --- checkpoints ------------------------------------------------------------------------------------

    def _persist(self, order: Persist, value: Any, known: _Actor | None) -> None:
        view = View(self._world.store)
        output = state = None
        if order.output:
            output = worker.persist_output(value, Blobs(view, self._workflow_id, known=order.known))
        if known is not None:
            if self._actors.get(known.spec.id) is not known:
                return
            known.member.blobs = Blobs(view, self._workflow_id)
            state = known.member.persist(order.attempt)
        name = (order.task, order.attempt)
        if isinstance(output, Failure) or isinstance(state, Failure):
            self._tell(PersistFailed(*name, f"{output} {state}"))
            return
        event = Persisted(*name, output, state)

        def written(error: StorageUnavailable | None) -> None:
            self._tell(event if error is None else PersistFailed(*name, str(error)))

        self._write(view, written)

    def _write(self, view: View, then: Callable[[StorageUnavailable | None], None]) -> None:
        """Send the writes of a view to the store; tell when all have been answered, and the first error."""
        left = [len(view.writes)]
        errors: list[StorageUnavailable] = []

        def answered(_: Any = None, error: StorageUnavailable | None = None) -> None:
            left[0] -= 1
            if error is not None:
                errors.append(error)
            if left[0] == 0:
                then(errors[0] if errors else None)

        for key, data in view.writes.items():
            self._world.begin(self, Put(key, data), answered)
        if not view.writes:
            then(None)

    def _tell(self, event: Event) -> None:
        self._tell_owner(event)


def _values(attempt: Attempt) -> list[Any]:
    return [value for cell in attempt.inputs for value in cell]
