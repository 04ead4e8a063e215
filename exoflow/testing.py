"""A deterministic simulator of everything around the core, and the tools to crash it anywhere.

`Simulation` drives the same core and the same journal as the real controller, with workers, actors, the
store and the order of events simulated from one seed. Bodies really run. Every write is logged when it
begins and when it lands, so that `crash_states` can rebuild what a crash at any moment may leave behind:
all that had landed, and any subset of what was in flight.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from exoflow import worker
from exoflow.blobs import Blobs
from exoflow.controller import blob_keys, collect, expander, sweep, write_archive
from exoflow.errors import ExoflowError, WorkflowNotFound
from exoflow.journal import Journal, Owner, Tail, read_journal
from exoflow.messages import (
    ActorLost,
    Append,
    Appended,
    Archive,
    Collect,
    Complete,
    Event,
    Failed,
    Instruction,
    Lost,
    Persist,
    Persisted,
    PersistFailed,
    Produced,
    Refused,
    Release,
    Report,
    StartActor,
    StopActor,
    Submit,
    Wake,
    Woken,
)
from exoflow.plan import ActorSpec, Plan
from exoflow.records import History, Record, Started, Status
from exoflow.state import WorkflowState
from exoflow.storage import LocalStore, MemoryStore
from exoflow.worker import Failure, Member, Refusal

WORKFLOW_ID = "simulated"
_MAX_STEPS = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the write log: a write begins or lands, or a key is deleted."""

    kind: str
    write: int
    key: str
    data: bytes = b""


def crash_states(
    log: list[LogEntry], *, max_in_flight: int = 6
) -> Iterator[tuple[int, tuple[str, ...], dict[str, bytes]]]:
    """Yield every state of the store that a crash of an owner who began on an empty one may leave behind.

    Yields
    ------
    point : int
        Number of log entries that had happened.
    landed : tuple of str
        Keys of the writes in flight that landed all the same.
    objects : dict
        The store's content.
    """
    for point in range(len(log) + 1):
        objects, flying = _replay(log[:point], {})
        for size in range(min(len(flying), max_in_flight) + 1):
            for subset in itertools.combinations(flying[:max_in_flight], size):
                landed = {entry.key: entry.data for entry in subset}
                yield point, tuple(landed), {**objects, **landed}


def _replay(log: list[LogEntry], objects: Mapping[str, bytes]) -> tuple[dict[str, bytes], list[LogEntry]]:
    """Return the store's content after a log, and the writes still in flight."""
    kept = dict(objects)
    flying: dict[int, LogEntry] = {}
    for entry in log:
        match entry.kind:
            case "begin":
                flying[entry.write] = entry
            case "land":
                kept[entry.key] = flying.pop(entry.write).data
            case "delete":
                kept.pop(entry.key, None)
    return kept, list(flying.values())


def _objects(store: MemoryStore | LocalStore) -> dict[str, bytes]:
    if isinstance(store, MemoryStore):
        return dict(store.objects)
    found = {key: store.get(key) for key in store.list("workflows")}
    return {key: data for key, data in found.items() if data is not None}


class _Capture(MemoryStore):
    """Reads through to a store, but keeps writes and deletions back."""

    def __init__(self, below: MemoryStore | LocalStore) -> None:
        super().__init__(_objects(below))
        self.writes: list[tuple[str, bytes]] = []
        self.deletions: list[str] = []

    def put(self, key: str, data: bytes) -> None:
        """Keep the write back."""
        super().put(key, data)
        self.writes.append((key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Keep the write back, if it would win."""
        created = super().put_if_absent(key, data)
        if created:
            self.writes.append((key, data))
        return created

    def delete(self, key: str) -> None:
        """Keep the deletion back."""
        super().delete(key)
        self.deletions.append(key)


@dataclasses.dataclass(frozen=True, slots=True)
class Faults:
    """How often things go wrong, as probabilities per step or per attempt."""

    lose_worker: float = 0.0
    lose_actor: float = 0.0
    crash: float = 0.0


class Crashed(Exception):
    """The simulated owner died."""


class Simulation:
    """One owner's tenure of one workflow, simulated.

    Parameters
    ----------
    plan : Plan
        The workflow.
    objects : dict, optional
        What the store holds; a crash's leftovers, or nothing.
    store : MemoryStore or LocalStore, optional
        The store itself, instead of ``objects``.
    seed : int
        Decides the order of everything and where faults strike.
    faults : Faults
        How often they strike.
    fold_every : int
        Objects between two folds.
    """

    def __init__(
        self,
        plan: Plan,
        objects: Mapping[str, bytes] | None = None,
        *,
        seed: int = 0,
        faults: Faults | None = None,
        fold_every: int = 8,
        core: type[WorkflowState] = WorkflowState,
        store: MemoryStore | LocalStore | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.store = store or MemoryStore(dict(objects or {}))
        self.log: list[LogEntry] = []
        self.end: Complete | None = None
        self.now = 1000.0
        self._plan = plan
        self._writes = itertools.count()
        self._nonces = itertools.count()
        self._seed = seed
        tail = self._tail()
        first: list[Record] = [Started(plan.digest, "nonce", self.now)] if tail is None else []
        owner = Owner("simulated", "boot", 1, 1, f"owner-{seed}")
        found = blob_keys(self.store, WORKFLOW_ID)
        self.journal = Journal(self.store, WORKFLOW_ID, owner, self._nonce)
        self._write_now(lambda store: self._journal_on(store).claim(tail, first))
        history = History() if tail is None else tail.history
        history.reopen()
        history.add(first)
        sweep(self.store, WORKFLOW_ID, found, history.blobs())
        self.core = core(plan, history, expander(), fold_every=fold_every)
        self._values: dict[tuple[str, int], list[Any]] = {}
        self._members: dict[str, tuple[ActorSpec, int, Member]] = {}
        self._waiting: list[tuple[Submit, list[list[Any]]]] = []
        self._pending: list[Callable[[], None]] = []
        self._events: list[Event] = []
        self._to_write: list[Archive | Append | Collect] = []
        self._writing = False
        self._appending = False
        self.executions: list[str] = []

    def run(self) -> Status:
        """Run to the end; raises Crashed when a simulated crash strikes first."""
        self._obey(self.core.start())
        for _ in range(_MAX_STEPS):
            if self.end is not None:
                return self.end.status
            if self.faults.crash and self.random.random() < self.faults.crash:
                raise Crashed
            self._step()
        message = f"no end after {_MAX_STEPS} steps (seed {self._seed})"
        raise AssertionError(message)

    def result(self) -> Any:
        """Return the workflow's result as a reader of the store finds it."""
        tail = read_journal(self.store, WORKFLOW_ID)
        committed = tail.history.committed
        root = committed.get(self._plan.root)
        if root is None:
            carries = [record for record in committed.values() if record.loop == self._plan.root and record.carry]
            root = max(carries, key=lambda record: record.iteration)
        assert root.output is not None
        return Blobs(self.store, WORKFLOW_ID).load(root.output)

    def verify(self) -> None:
        """Assert that every blob that a record names is there, whole."""
        history = read_journal(self.store, WORKFLOW_ID).history
        blobs = Blobs(self.store, WORKFLOW_ID)
        for record in [*history.committed.values(), *history.snapshots.values()]:
            for blob in record.blobs:
                blobs.read(blob)

    # --- one step ---------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Let one thing happen, chosen at random among all that could happen now."""
        choices: list[Callable[[], None]] = []
        choices += [partial(self._deliver, event) for event in self._events]
        choices += [partial(self._execute, *each) for each in self._waiting if self._runnable(*each)]
        choices += [partial(self._act, act) for act in self._pending]
        if self._to_write and not self._writing:
            choices.append(self._begin_write)
        if not choices:
            running = [state.id for state in self.core._tasks.values()]
            message = f"stuck (seed {self._seed}): nothing can happen; tasks {running}"
            raise AssertionError(message)
        if self._members and self.random.random() < self.faults.lose_actor:
            self._lose_actor()
            return
        self.random.choice(choices)()

    def _deliver(self, event: Event) -> None:
        self._events.remove(event)
        if isinstance(event, Appended):
            self._appending = False
        self._obey(self.core.apply(event))
        self.core.check_invariants()

    def _act(self, act: Callable[[], None]) -> None:
        self._pending.remove(act)
        act()

    def _obey(self, instructions: list[Instruction]) -> None:
        for order in instructions:
            match order:
                case Submit():
                    # As in Ray, what was submitted keeps hold of its inputs whatever is released later.
                    inputs = [self._values[live.task, live.attempt] for live in worker.live_inputs(order)]
                    self._values[order.spec.id, order.attempt] = []
                    self._waiting.append((order, inputs))
                case StartActor():
                    self._start_actor(order)
                case StopActor():
                    self._members.pop(order.actor, None)
                case Persist():
                    self._persist(order)
                case Append() | Archive() | Collect():
                    if isinstance(order, Append):
                        assert not self._appending, "two appends in flight"
                        self._appending = True
                    self._to_write.append(order)
                case Release():
                    self._values.pop((order.task, order.attempt), None)
                case Wake():
                    self._events.append(Woken(order.task))
                case Complete():
                    self.end = order

    # --- bodies -----------------------------------------------------------------------------------------

    def _runnable(self, order: Submit, inputs: list[list[Any]]) -> bool:
        if not all(inputs):
            return False
        if order.call is None or not order.call.leaves:
            return True
        known = self._members.get(order.spec.actor or "")
        return known is not None and known[2].token == order.call.expects

    def _execute(self, order: Submit, inputs: list[list[Any]]) -> None:
        self._waiting.remove((order, inputs))
        name = (order.spec.id, order.attempt)
        cell = self._values.get(name, [])
        if self.random.random() < self.faults.lose_worker and order.spec.actor is None:
            self._events.append(Lost(*name, "simulated"))
            return
        self.executions.append(order.spec.id)
        if order.spec.options.external:
            intended = read_journal(self.store, WORKFLOW_ID).history.intended
            assert order.spec.id in intended, f"{order.spec.id} ran before its intent was durable"
        values = [value for cell in inputs for value in cell]
        capture = _Capture(self.store)
        job = worker.make_job(order, WORKFLOW_ID, "memory://", [None] * len(values))
        if order.spec.actor is None:
            value, outcome = worker.run_task(job, values, capture)
        else:
            known = self._members.get(order.spec.actor)
            if known is None or order.call is None or known[1] != order.call.incarnation:
                return
            member = known[2]
            member.blobs = Blobs(capture, WORKFLOW_ID)
            value, outcome = member.call(job, values)
        event: Event
        if isinstance(outcome, Report):
            event = Produced(*name, outcome)
        elif isinstance(outcome, Refusal):
            event = Refused(*name)
        else:
            event = Failed(*name, outcome.error)

        def done() -> None:
            cell.append(value)
            self._events.append(event)

        self._land_then(capture.writes, done)

    def _start_actor(self, order: StartActor) -> None:
        member = Member(order.spec, WORKFLOW_ID, self.store, 0, order.restore, None)
        member.start()
        self._members[order.spec.id] = (order.spec, order.incarnation, member)

    def _lose_actor(self) -> None:
        name = self.random.choice(sorted(self._members))
        _, incarnation, _ = self._members.pop(name)
        self._events.append(ActorLost(name, incarnation, "simulated"))

    def _persist(self, order: Persist) -> None:
        name = (order.task, order.attempt)
        task = self.core.task(order.task)
        assert task is not None
        if not order.state:
            value = self._values[name][0]
            self._pending.append(lambda: self._persist_output(order, value))
        else:
            known = self._members.get(task.spec.actor or "")
            if known is not None:
                self._pending.append(lambda: self._persist_call(order, known[2]))

    def _persist_output(self, order: Persist, value: Any) -> None:
        capture = _Capture(self.store)
        made = worker.persist_output(WORKFLOW_ID, "memory://", value, capture)
        event: Event
        if isinstance(made, Failure):
            event = PersistFailed(order.task, order.attempt, made.error)
        else:
            event = Persisted(order.task, order.attempt, made, None)
        self._land_then(capture.writes, lambda: self._events.append(event))

    def _persist_call(self, order: Persist, member: Member) -> None:
        if all(known[2] is not member for known in self._members.values()):
            return
        capture = _Capture(self.store)
        member.blobs = Blobs(capture, WORKFLOW_ID)
        output = None
        if order.output:
            value = self._values[order.task, order.attempt][0]
            output = worker.persist_output(WORKFLOW_ID, "memory://", value, capture)
        state = member.persist(order.attempt)
        assert not isinstance(output, Failure)
        assert not isinstance(state, Failure)
        event = Persisted(order.task, order.attempt, output, state)
        self._land_then(capture.writes, lambda: self._events.append(event))

    # --- writes -----------------------------------------------------------------------------------------

    def _land_then(self, writes: list[tuple[str, bytes]], after: Callable[[], None]) -> None:
        """Begin writes now; each lands at a later step; then something follows."""
        if not writes:
            after()
            return
        left = [len(writes)]

        def landing(number: int, key: str, data: bytes) -> Callable[[], None]:
            def land() -> None:
                self.log.append(LogEntry("land", number, key))
                self.store.put(key, data)
                left[0] -= 1
                if left[0] == 0:
                    after()

            return land

        for key, data in writes:
            number = next(self._writes)
            self.log.append(LogEntry("begin", number, key, data))
            self._pending.append(landing(number, key, data))

    def _begin_write(self) -> None:
        order = self._to_write.pop(0)
        self._writing = True
        self.now += 1.0
        capture = _Capture(self.store)

        def done() -> None:
            self._writing = False
            for key in capture.deletions:
                self.log.append(LogEntry("delete", -1, key))
                self.store.delete(key)
            if isinstance(order, Append):
                self._events.append(Appended(self.now))

        match order:
            case Append():
                self._journal_on(capture).append(order.records, fold=order.fold)
            case Archive():
                write_archive(capture, WORKFLOW_ID, self._plan, order)
            case Collect():
                collect(capture, WORKFLOW_ID, self._journal_on(capture), order)
        self._land_then(capture.writes, done)

    def _write_now(self, write: Callable[[MemoryStore], None]) -> None:
        capture = _Capture(self.store)
        write(capture)
        for key, data in capture.writes:
            number = next(self._writes)
            self.log.append(LogEntry("begin", number, key, data))
            self.log.append(LogEntry("land", number, key))
            self.store.put(key, data)

    def _journal_on(self, store: MemoryStore) -> Journal:
        self.journal.use(store)
        return self.journal

    def _tail(self) -> Tail | None:
        try:
            return read_journal(self.store, WORKFLOW_ID)
        except WorkflowNotFound:
            return None

    def _nonce(self) -> str:
        return f"{self._seed}-{next(self._nonces)}"


def run_to_end(
    plan: Plan, *, seed: int = 0, faults: Faults | None = None, objects: Mapping[str, bytes] | None = None
) -> Simulation:
    """Simulate a workflow through any number of crashes until it ends; return the last tenure."""
    kept = dict(objects or {})
    for tenure in itertools.count():
        simulation = Simulation(plan, kept, seed=seed * 1009 + tenure, faults=faults)
        try:
            simulation.run()
        except Crashed:
            kept, flying = _replay(simulation.log, kept)
            kept |= {entry.key: entry.data for entry in flying if simulation.random.random() < 0.5}
            continue
        return simulation
    raise ExoflowError
