"""The thin shell around the core: one owner's tenure of one workflow, in the process that asked for it.

The main thread feeds events to the core and obeys its instructions. A writer thread does what must happen
in order and may take long: archive, append, collect. A third thread beats the heart.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from exoflow.blobs import Blobs
from exoflow.errors import Fenced, TaskFailed
from exoflow.executor import RayExecutor
from exoflow.journal import Journal, Tail, workflow_folder
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
    StopActor,
    Submit,
    Wake,
    Woken,
)
from exoflow.ownership import LEASE_SECONDS, HeartbeatThread, this_process
from exoflow.pins import pinned_blobs
from exoflow.plan import Iteration, LoopSpec, Plan, expand
from exoflow.records import Committed, Finished, History, Record, Status
from exoflow.state import WorkflowState
from exoflow.storage import Store
from exoflow.views import archive_key, iteration_views

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told what happens, from the controller's thread; must return at once."""

    def produced(self, event: Produced) -> None:
        """Learn that a task's body has returned."""

    def committed(self, records: Sequence[Record], at: float) -> None:
        """Learn that records are durable since ``at`` (Unix seconds)."""


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
    TaskFailed
        When the workflow ends as FAILED.
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
        observer: Observer | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._store = store
        self._workflow_id = workflow_id
        self._plan = plan
        self._observer = observer
        self._lease_seconds = lease_seconds
        owner = this_process()
        self._journal = Journal(store, workflow_id, owner, lambda: uuid.uuid4().hex)
        history = tail.history if tail is not None else History()
        history.reopen()
        history.add(first)
        self._state = WorkflowState(plan, history, expander(), replicas=replicas)
        found = blob_keys(store, workflow_id)
        self._journal.claim(tail, first)
        self._heart = HeartbeatThread(store, workflow_id, owner.nonce, lease_seconds)
        try:
            sweep(store, workflow_id, found, history.blobs())
        except BaseException:
            self._heart.release()
            raise
        self._events: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[Archive | Append | Collect | None] = queue.SimpleQueue()
        self._verified_at = time.monotonic()
        self._end: Complete | None = None

    def run(self) -> None:
        """Run the workflow to its end."""
        executor = RayExecutor(self._workflow_id, self._store.uri, self._events.put)
        writer = threading.Thread(target=self._write, name="exoflow-writer")
        writer.start()
        try:
            self._loop(executor)
        finally:
            self._to_write.put(None)
            writer.join()
            executor.close()
        assert self._end is not None
        if self._end.status is Status.FAILED:
            raise TaskFailed(self._workflow_id, self._end.task or "", self._end.error or "")

    def close(self) -> None:
        """Give the workflow up, whether or not it ran."""
        self._heart.release()

    def _loop(self, executor: RayExecutor) -> None:
        for instruction in self._state.start():
            self._obey(instruction, executor)
        while self._end is None:
            event = self._events.get()
            if isinstance(event, BaseException):
                raise event
            if self._observer is not None and isinstance(event, Produced):
                self._observer.produced(event)
            for instruction in self._state.apply(event):
                self._obey(instruction, executor)

    def _obey(self, instruction: Instruction, executor: RayExecutor) -> None:
        match instruction:
            case Submit():
                if instruction.spec.options.external:
                    self._make_sure_of_ownership()
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
                timer = threading.Timer(instruction.seconds, self._events.put, [Woken(instruction.task)])
                timer.daemon = True
                timer.start()
            case Complete():
                self._end = instruction
            case Append() | Archive() | Collect():
                self._to_write.put(instruction)

    # --- the writer thread ------------------------------------------------------------------------------

    def _write(self) -> None:
        while (order := self._to_write.get()) is not None:
            try:
                match order:
                    case Append():
                        self._append(order)
                    case Archive():
                        write_archive(self._store, self._workflow_id, self._plan, order)
                    case Collect():
                        collect(self._store, self._workflow_id, self._journal, order, self._make_sure_of_ownership)
            except BaseException as error:
                self._events.put(error)
                return

    def _append(self, order: Append) -> None:
        records = [
            dataclasses.replace(record, at=time.time()) if isinstance(record, Finished) else record
            for record in order.records
        ]
        at = self._journal.append(records, fold=order.fold)
        self._verified_at = time.monotonic()
        if self._observer is not None:
            self._observer.committed(records, at)
        self._events.put(Appended(at))

    def _make_sure_of_ownership(self) -> None:
        """Look for a successor if so much time has passed since the last look that there may be one.

        Raises
        ------
        Fenced
            When another owner has claimed the workflow.
        """
        if time.monotonic() - self._verified_at < self._lease_seconds / 2:
            return
        successor = self._journal.successor()
        if successor is not None:
            message = f"workflow {self._workflow_id!r} was taken over by {successor}; this process stops"
            raise Fenced(self._workflow_id, message)
        self._verified_at = time.monotonic()


def write_archive(store: Store, workflow_id: str, plan: Plan, order: Archive) -> None:
    """Let the loop's own function make one object of iterations that leave the journal."""
    loop = next(loop for loop in plan.loops if loop.id == order.loop)
    assert loop.archive is not None
    committed = [record for record in order.records if isinstance(record, Committed)]
    data = loop.archive.load()(iteration_views(committed, Blobs(store, workflow_id)))
    store.put(archive_key(workflow_id, loop.id, order.first, order.last), data)


def collect(
    store: Store,
    workflow_id: str,
    journal: Journal,
    order: Collect,
    before_each: Callable[[], None] = lambda: None,
) -> None:
    """Delete what a fold has made superfluous; pins are read after the fold, see `exoflow.pins`."""
    before_each()
    pinned = pinned_blobs(store, workflow_id)
    blobs = Blobs(store, workflow_id)
    for blob in order.blobs:
        if blob.name not in pinned:
            before_each()
            store.delete(blobs.key(blob))
    journal.collect()


def blob_keys(store: Store, workflow_id: str) -> list[str]:
    """Return the keys of all blobs of a workflow."""
    return store.list(f"{workflow_folder(workflow_id)}/blobs")


def sweep(store: Store, workflow_id: str, found: Sequence[str], live: set[str]) -> int:
    """Delete blobs that no record names, left by owners that died; return how many.

    ``found`` was listed before the claim. So whatever a successor of this owner writes is safe, however
    late the deletion comes; and this owner's own blobs, which exist before their records do, are too.
    """
    keep = live | pinned_blobs(store, workflow_id)
    dead = [key for key in found if key.rsplit("/", 1)[1] not in keep]
    for key in dead:
        store.delete(key)
    return len(dead)


def expander() -> Callable[[LoopSpec, int, str], Iteration]:
    """Return a function that expands loops and loads each body once."""
    bodies: dict[str, Any] = {}

    def expand_one(spec: LoopSpec, iteration: int, previous: str) -> Iteration:
        if spec.id not in bodies:
            bodies[spec.id] = spec.body.load()
        return expand(spec, bodies[spec.id], iteration, previous)

    return expand_one
