"""Simulated workers and actors of one owner: the engine's own worker code, on a view of the store.

A body runs at one instant, when its inputs are there; what it writes then leaves for the store, and its
outcome is told when all of that is durable. In between, everything may die. A call of a replicated actor
has a part for each member; they begin and end on their own.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
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
    Purpose,
    Refused,
    Report,
    Settled,
    StartActor,
    Submit,
)
from exoflow.plan import ActorSpec
from exoflow.records import Value
from exoflow.steps import Put
from exoflow.storage import Store
from exoflow.testing.members import Suspended, TalkingMember, Turn
from exoflow.testing.outside import Break, outside
from exoflow.testing.world import Process, World
from exoflow.worker import Failure, Refusal, Settlement, Unavailable

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
        """Return what the store holds: bodies list only what others write."""
        return self._below.list(prefix)

    def delete(self, key: str) -> None:
        """Bodies delete nothing."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What an attempt makes: one value, or that of each member. A cell is empty until its value is there."""

    cells: list[Cell]
    grouped: bool


class Fate(enum.Enum):
    """What becomes of one part of an attempt, apart from what its body does by itself."""

    RUNS = enum.auto()
    DIES_BEFORE = enum.auto()
    DIES_AFTER = enum.auto()


@dataclasses.dataclass(slots=True, eq=False)
class Attempt:
    """A submission, with hold of its inputs whatever is released later."""

    order: Submit
    generation: int
    actor: _Actor | None
    inputs: list[Output]
    output: Output
    reports: list[Report | None]
    told: bool = False

    @property
    def name(self) -> tuple[str, int]:
        """Task and number."""
        return self.order.spec.id, self.order.attempt

    @property
    def values(self) -> list[Any]:
        """The inputs that are there, one after the other."""
        return [value for given in self.inputs for cell in given.cells for value in cell]

    @property
    def has_effect(self) -> bool:
        """Whether it runs the body of an external task."""
        return self.order.spec.options.external and self.order.purpose is Purpose.BODY


@dataclasses.dataclass(slots=True, eq=False)
class Part:
    """What one process does of an attempt: all of it, or one member's share of a call."""

    attempt: Attempt
    index: int
    fate: Fate | None = None
    breaks: Break | None = None
    suspended: bool = False

    @property
    def cell(self) -> Cell:
        """Where its value goes."""
        return self.attempt.output.cells[self.index]

    @property
    def member(self) -> TalkingMember | None:
        """The member that runs it, if it is part of a call."""
        return None if self.attempt.actor is None else self.attempt.actor.members[self.index]


@dataclasses.dataclass(slots=True, eq=False)
class _Actor:
    spec: ActorSpec
    incarnation: int
    members: list[TalkingMember]
    to_persist: deque[Callable[[], None]] = dataclasses.field(default_factory=deque)
    """What becomes durable one after the other; the first is under way."""


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
        self._tell = tell
        self._executed = executed
        self._outputs: dict[tuple[str, int], Output] = {}
        self._actors: dict[str, _Actor] = {}
        self._waiting: list[Part] = []

    # --- orders -----------------------------------------------------------------------------------------

    def accept(self, order: Submit, generation: int) -> Attempt:
        """Take hold of the inputs of a submission by an owner's ``generation``."""
        inputs = [self._outputs[live.task, live.attempt] for live in worker.live_inputs(order)]
        actor = None if order.call is None else self._actors[order.spec.actor or ""]
        members = 1 if actor is None else actor.spec.members
        output = Output([[] for _ in range(members)], actor is not None and actor.spec.replicas is not None)
        self._outputs[order.spec.id, order.attempt] = output
        return Attempt(order, generation, actor, inputs, output, [None] * members)

    def start(self, attempt: Attempt) -> None:
        """Run an attempt as soon as its inputs are there."""
        self._waiting += [Part(attempt, index) for index in range(len(attempt.output.cells))]
        self._look()

    def release(self, task: str, attempt: int) -> None:
        """Forget a value; attempts that were submitted keep hold of it."""
        self._outputs.pop((task, attempt), None)

    def start_actor(self, order: StartActor) -> None:
        """Create an actor's processes."""
        spec = order.spec
        actor = _Actor(spec, order.incarnation, [])
        for index in range(spec.members):
            post = partial(self._post, actor, index)
            member = TalkingMember(spec, self._workflow_id, self._world.store, index, order.restore, post)
            member.start()
            actor.members.append(member)
        self._actors[spec.id] = actor
        self._look()

    def stop_actor(self, actor: str, incarnation: int) -> None:
        """End an actor's processes."""
        known = self._actors.get(actor)
        if known is not None and known.incarnation == incarnation:
            del self._actors[actor]
            for member in known.members:
                member.alive = False
            self._look()

    def lose_member(self) -> None:
        """Let a member of an actor die."""
        living = [
            (known, index)
            for _, known in sorted(self._actors.items())
            for index, member in enumerate(known.members)
            if member.alive
        ]
        if living:
            known, index = self._world.random.choice(living)
            self._kill_member(known, index)
            self._tell_loss(known)

    def _kill_member(self, known: _Actor, index: int) -> None:
        self._world.note(f"member {index} of {known.spec.id} dies")
        known.members[index].alive = False
        self._look()

    def _tell_loss(self, known: _Actor) -> None:
        self._tell(ActorLost(known.spec.id, known.incarnation, "it died (simulated)"))

    def _post(self, actor: _Actor, sender: int, receiver: int, turn: Turn, message: Any) -> None:
        """Send a message from one member to another; it may get lost with its sender."""

        def arrive() -> None:
            if actor.members[sender].alive or self._world.random.random() < 0.5:
                actor.members[receiver].hear(sender, turn, message)
                self._look()

        self._world.later(self, arrive, seconds=self._world.delay())

    # --- bodies -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Let what has become runnable happen."""
        ready = [part for part in self._waiting if self._runnable(part)]
        if ready:
            self._waiting = [part for part in self._waiting if part not in ready]
        for part in ready:
            self._world.later(self, partial(self._begin, part), seconds=self._world.delay())

    def _runnable(self, part: Part) -> bool:
        attempt, member, call = part.attempt, part.member, part.attempt.order.call
        if _GONE in attempt.values or (member is not None and not member.alive):
            return True
        if not all(cell for given in attempt.inputs for cell in given.cells):
            return False
        if member is None or call is None:
            return True
        if part.suspended:
            return not member.waits()
        return not member.suspended and (not call.leaves or member.token == call.expects)

    def _begin(self, part: Part) -> None:
        if not self._runnable(part):
            self._waiting.append(part)
            return
        if self._died_before(part):
            return
        if _GONE in part.attempt.values:
            self._lose(part, "an input is gone (simulated)")
            return
        if part.fate is None:
            part.fate, part.breaks = self._fate(part.attempt)
        if part.fate is Fate.DIES_BEFORE:
            self._die(part)
            return
        view = View(self._world.store)
        try:
            with outside.breaking(part.breaks):
                value, event = self._run(part, view)
        except Suspended:
            part.suspended = True
            self._waiting.append(part)
            self._look()
            return
        if part.fate is Fate.DIES_AFTER:
            self._die(part)
            return

        def written(error: StorageUnavailable | None) -> None:
            if not self._died_before(part):
                part.cell.append(value if error is None else Unavailable())
                self._outcome(part, event if error is None else Failed(*part.attempt.name, str(error)))
                self._look()

        self._write(view, written)

    def _fate(self, attempt: Attempt) -> tuple[Fate, Break | None]:
        """Draw what becomes of a part of an attempt, and how its body ends if that raises."""
        world, faults, order = self._world, self._world.faults, attempt.order
        dies = order.call is None and world.chance(faults.lose_worker)
        dies = dies or (order.spec.options.timeout is not None and world.chance(faults.time_out))
        if dies:
            return (Fate.DIES_BEFORE if world.chance(0.5) else Fate.DIES_AFTER), None
        options = order.spec.options
        if options.catch_exceptions and options.deterministic:
            # What it raises would be its output, and that is always the same.
            return Fate.RUNS, None
        if attempt.has_effect and world.chance(faults.vouch):
            return Fate.RUNS, Break.VOUCHED
        if world.chance(faults.fail_body):
            return Fate.RUNS, Break.BEFORE if world.chance(0.5) else Break.AFTER
        return Fate.RUNS, None

    def _died_before(self, part: Part) -> bool:
        """Whether the member that should run a part, or is about to tell of it, is no more."""
        if part.member is None or part.member.alive:
            return False
        assert part.attempt.actor is not None
        self._gone(part)
        self._tell_loss(part.attempt.actor)
        self._look()
        return True

    def _die(self, part: Part) -> None:
        """Let the process die that runs a part."""
        attempt = part.attempt
        if attempt.actor is not None:
            self._kill_member(attempt.actor, part.index)
            self._died_before(part)
        elif attempt.order.spec.options.timeout is not None and self._world.random.random() < 0.5:
            self._gone(part)
            self._outcome(part, Failed(*attempt.name, "it did not return within its timeout (simulated)"))
            self._look()
        else:
            self._lose(part, "its process died (simulated)")

    def _lose(self, part: Part, reason: str) -> None:
        """Let a part end without a value: whoever waits for that is lost with it."""
        self._gone(part)
        self._outcome(part, Lost(*part.attempt.name, reason))
        self._look()

    def _gone(self, part: Part) -> None:
        part.cell.append(_GONE)
        if part.attempt.has_effect:
            outside.unclear.add(part.attempt.order.key)

    def _outcome(self, part: Part, event: Event) -> None:
        """Tell the owner what became of an attempt, once all its parts have returned or one has not."""
        attempt = part.attempt
        match event:
            case Produced():
                attempt.reports[part.index] = event.report
                reports = [report for report in attempt.reports if report is not None]
                if len(reports) < len(attempt.reports):
                    return
                if attempt.output.grouped:
                    event = Produced(*attempt.name, Report.group(reports))
            case Failed() if attempt.has_effect and not event.not_done:
                outside.unclear.add(attempt.order.key)
        if isinstance(event, Failed | Refused):
            if attempt.told:
                return
            attempt.told = True
        self._tell(event)

    def _run(self, part: Part, view: View) -> tuple[Any, Event]:
        """Run what an attempt is for; return the value for consumers, and what to tell the owner."""
        attempt = part.attempt
        order, values = attempt.order, attempt.values
        if not part.suspended:
            self._executed(order.spec.id)
            self._world.note(f"{order.purpose} of {order.spec.id} runs")
        members = [len(given.cells) if given.grouped else None for given in attempt.inputs]
        job = worker.make_job(order, self._workflow_id, _URI, members, attempt.generation)
        # How long a body takes is for the seed to say.
        job = dataclasses.replace(job, timeout=None)
        if part.member is None:
            value, outcome = worker.run_task(job, values, view)
        else:
            part.member.blobs = Blobs(view, self._workflow_id)
            value, outcome = part.member.call(job, values)
        match outcome:
            case Report():
                return value, Produced(*attempt.name, outcome)
            case Failure():
                return value, Failed(*attempt.name, outcome.error, outcome.not_done, outcome.no_retry)
            case Settlement():
                return value, Settled(*attempt.name, outcome.verdict, outcome.report)
            case Refusal():
                return value, Refused(*attempt.name)

    # --- checkpoints ------------------------------------------------------------------------------------

    def persist(self, order: Persist, actor: str | None) -> None:
        """Make an output, a captured state, or both durable."""
        output = self._outputs[order.task, order.attempt] if order.output else None
        known = self._actors.get(actor or "") if order.state else None
        if order.state and known is None:
            return
        begin = partial(self._persist, order, output, known)
        if known is None:
            self._world.later(self, begin, seconds=self._world.delay())
            return
        # A member has one thread for this.
        known.to_persist.append(begin)
        if len(known.to_persist) == 1:
            self._world.later(self, begin, seconds=self._world.delay())

    def _persist(self, order: Persist, output: Output | None, known: _Actor | None) -> None:
        if known is not None and not all(member.alive for member in known.members):
            self._tell_loss(known)
            return
        name = (order.task, order.attempt)
        view = View(self._world.store)
        blobs = Blobs(view, self._workflow_id, known=order.known)
        outputs = [] if output is None else [worker.persist_output(cell[0], blobs) for cell in output.cells]
        states = []
        for member in () if known is None else known.members:
            member.blobs = Blobs(view, self._workflow_id)
            states.append(member.persist(order.attempt))
        failures = [made.error for made in (*outputs, *states) if isinstance(made, Failure)]
        of_group = known is not None and known.spec.replicas is not None
        whole = _joined(outputs, grouped=output is not None and output.grouped), _joined(states, grouped=of_group)
        event = Persisted(*name, *whole)

        def written(error: StorageUnavailable | None) -> None:
            reasons = [*failures, *([] if error is None else [str(error)])]
            self._tell(PersistFailed(*name, reasons[0]) if reasons else event)
            if known is not None:
                for member in known.members if error is not None else ():
                    member.lose_persisted(str(error))
                known.to_persist.popleft()
                if known.to_persist:
                    self._world.later(self, known.to_persist[0], seconds=self._world.delay())

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


def _joined(made: list[Value | Failure], *, grouped: bool) -> Value | None:
    """Return what one value, or those of all members, amount to."""
    values = [value for value in made if isinstance(value, Value)]
    return Value.group(values) if grouped and values else next(iter(values), None)
