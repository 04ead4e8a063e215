"""The thin shell around the core: one owner's tenure of one workflow, in the process that asked for it.

The main thread feeds events to the core and obeys its instructions. A writer thread does what must happen
in order and may take long: archive, append, collect. A third thread beats the heart.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from exoflow.collection import archive, claim, collect, sweep
from exoflow.errors import InDoubt, TaskFailed
from exoflow.executor import RayExecutor
from exoflow.journal import Journal, Tail
from exoflow.messages import (
    Append,
    Appended,
    Archive,
    Collect,
    Complete,
    Event,
    Instruction,
    Persist,
    Produced,
    Release,
    StartActor,
    StateDamaged,
    StopActor,
    Submit,
    Told,
    Wake,
    Woken,
)
from exoflow.ownership import LEASE_SECONDS, HeartbeatThread, this_process
from exoflow.plan import Iteration, LoopSpec, Plan, expand
from exoflow.precedence import giving_way
from exoflow.records import History, Record, Status
from exoflow.state import WorkflowState
from exoflow.steps import drive
from exoflow.storage import Store

# While many attempts run, appends are begun at least this far apart: each costs two fsyncs and half a
# millisecond of processor whether it holds one record or fifty, and an attempt among many can spare the wait.
APPEND_EVERY_SECONDS = 0.005
MANY_ATTEMPTS = 16

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told what happens, from the controller's thread; must return at once."""

    def produced(self, event: Produced) -> None:
        """Learn that a task's body has returned."""

    def committed(self, records: Sequence[Record], at: float) -> None:
        """Learn that records are durable since ``at`` (Unix seconds)."""

    def told(self, actor: str, text: str) -> None:
        """Learn what the code of an actor said with `Context.tell`."""


_SIGNALS_SEEN_SECONDS = 0.5
"""How long an interrupt may go unseen. The system gives a signal to any thread of the process; Python handles it in the
main one, but wakes that only if the signal was its own, and nothing may happen for hours that would."""


class Controller:
    """Owns a workflow from claim to end.

    Parameters
    ----------
    store, workflow_id, plan
        What to run, and where it is kept.
    tail : Tail or None
        The journal as read before the claim; None for a new workflow.
    first : sequence of Record
        Records of the claim itself: `Started` for a new workflow.

    Raises
    ------
    Fenced
        When another owner takes over.
    TaskFailed, InDoubt
        When the workflow ends as FAILED or IN_DOUBT.
    StorageUnavailable
        When the store cannot be written; the workflow can be resumed.
    """

    def __init__(
        self,
        store: Store,
        workflow_id: str,
        plan: Plan,
        tail: Tail | None,
        first: Sequence[Record] = (),
        *,
        replicas: Mapping[str, int] | None = None,
        hints: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._store = store
        self._workflow_id = workflow_id
        self._plan = plan
        self._hints = hints or {}
        self._observer = observer
        self._lease_seconds = lease_seconds
        owner = this_process()
        self._journal = Journal(store, workflow_id, owner, lambda: uuid.uuid4().hex)
        history = tail.history if tail is not None else History()
        history.reopen()
        history.add(first)
        self._state = WorkflowState(plan, history, expander(), replicas=replicas)
        found = drive(claim(workflow_id, self._journal.tenure, tail, first), store)
        self._heart = HeartbeatThread(store, workflow_id, owner.nonce, lease_seconds)
        try:
            drive(sweep(workflow_id, found, history.blobs()), store)
        except BaseException:
            self._heart.release()
            raise
        self._events: queue.SimpleQueue[Event | Told | BaseException] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[Archive | Append | Collect | None] = queue.SimpleQueue()
        self._wakes: list[tuple[float, str]] = []
        self._end: Complete | None = None

    @property
    def history(self) -> History:
        """What the journal says, as far as this owner's appends were acknowledged."""
        return self._state.history

    def run(self) -> None:
        """Run the workflow to its end."""
        with giving_way():
            self._run_to_end()
        assert self._end is not None
        task, error = self._end.task or "", self._end.error or ""
        if self._end.status is Status.FAILED:
            raise TaskFailed(self._workflow_id, task, error)
        if self._end.status is Status.IN_DOUBT:
            raise InDoubt(self._workflow_id, task, error)

    def _run_to_end(self) -> None:
        executor = RayExecutor(
            self._workflow_id, self._store.uri, self._journal.generation, self._events.put, self._hints
        )
        writer = threading.Thread(target=self._write, args=[executor], name="exoflow-writer")
        writer.start()
        try:
            self._loop(executor)
        finally:
            self._to_write.put(None)
            writer.join()
            executor.close()

    def close(self) -> None:
        """Give the workflow up, whether or not it ran."""
        self._heart.release()

    def _loop(self, executor: RayExecutor) -> None:
        for instruction in self._state.start(time.time()):
            self._obey(instruction, executor)
        while self._end is None:
            if self._events.empty():
                executor.pump()
            event = self._next_event()
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Told):
                if self._observer is not None:
                    self._observer.told(event.actor, event.text)
                executor.listen(event.actor, event.incarnation, event.member)
                continue
            if isinstance(event, StateDamaged):
                logger.warning("the newest state of actor %s is damaged, going back: %s", event.actor, event.reason)
            if self._observer is not None and isinstance(event, Produced):
                self._observer.produced(event)
            for instruction in self._state.apply(event, time.time()):
                self._obey(instruction, executor)

    def _next_event(self) -> Event | Told | BaseException:
        """Return what happens next: something that was told, or a moment that the core asked to be woken at."""
        while self._wakes:
            seconds, task = self._wakes[0][0] - time.monotonic(), self._wakes[0][1]
            if seconds <= 0:
                heapq.heappop(self._wakes)
                return Woken(task)
            with contextlib.suppress(queue.Empty):
                return self._events.get(timeout=min(seconds, _SIGNALS_SEEN_SECONDS))
        while True:
            with contextlib.suppress(queue.Empty):
                return self._events.get(timeout=_SIGNALS_SEEN_SECONDS)

    def _obey(self, instruction: Instruction, executor: RayExecutor) -> None:
        match instruction:
            case Submit():
                if instruction.spec.options.external:
                    self._journal.make_sure(self._lease_seconds / 2)
                executor.submit(instruction)
            case StartActor():
                executor.start_actor(instruction)
            case StopActor():
                executor.stop_actor(instruction)
            case Persist():
                executor.persist(instruction)
            case Release():
                executor.release(instruction.task, instruction.attempt)
            case Wake():
                heapq.heappush(self._wakes, (time.monotonic() + instruction.seconds, instruction.task))
            case Complete():
                self._end = instruction
            case Append() | Archive() | Collect():
                self._to_write.put(instruction)

    # --- the writer thread ------------------------------------------------------------------------------

    def _write(self, executor: RayExecutor) -> None:
        appended = -APPEND_EVERY_SECONDS
        while (order := self._to_write.get()) is not None:
            try:
                match order:
                    case Append():
                        if executor.running >= MANY_ATTEMPTS:
                            time.sleep(max(0.0, appended + APPEND_EVERY_SECONDS - time.monotonic()))
                        appended = time.monotonic()
                        self._append(order)
                    case Archive():
                        drive(archive(self._store, self._workflow_id, self._plan, order), self._store)
                    case Collect():
                        tenure = self._journal.tenure
                        drive(collect(self._workflow_id, tenure, order, self._lease_seconds), self._store)
            except BaseException as error:
                self._events.put(error)
                return

    def _append(self, order: Append) -> None:
        at = self._journal.append(order.records, fold=order.fold)
        if self._observer is not None:
            self._observer.committed(order.records, at)
        self._events.put(Appended(at))


def expander() -> Callable[[LoopSpec, int, str], Iteration]:
    """Return a function that expands loops and loads each body once."""
    bodies: dict[str, Any] = {}

    def expand_one(spec: LoopSpec, iteration: int, previous: str) -> Iteration:
        if spec.id not in bodies:
            bodies[spec.id] = spec.body.load()
        return expand(spec, bodies[spec.id], iteration, previous)

    return expand_one
