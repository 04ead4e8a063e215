"""What can be read of workflows, from the store alone: status, outputs, times, loops.

Reading writes nothing and disturbs nobody. Only a value that holds references needs Ray.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from exoflow.blobs import Blobs
from exoflow.errors import InDoubt, TaskFailed, WorkflowError, WorkflowNotFound
from exoflow.journal import Tail, plan_key, read_journal
from exoflow.ownership import looks_alive
from exoflow.plan import Plan
from exoflow.records import Committed, Finished, History, Status
from exoflow.remote import RayReferences
from exoflow.settings import chosen_store
from exoflow.storage import Store
from exoflow.views import IterationView, archive_folder, archive_tiles, iteration_views


def get_status(workflow_id: str, *, store: str | None = None) -> Status:
    """Return where a workflow stands; raises WorkflowNotFound."""
    where = chosen_store(store, create=False)
    return _status(where, workflow_id, read_journal(where, workflow_id))


def get_output(workflow_id: str, *, task: str | None = None, store: str | None = None) -> Any:
    """Return the result of a finished workflow, or the committed output of one of its tasks.

    Raises
    ------
    WorkflowNotFound
        When the store has no such workflow.
    WorkflowError
        When there is no such output (yet), saying what there is.
    TaskFailed, InDoubt
        When the workflow has failed, or is in doubt, and its result was asked for.
    """
    where = chosen_store(store, create=False)
    tail = read_journal(where, workflow_id)
    if task is not None:
        record = tail.history.committed.get(task)
        if record is None or record.output is None:
            known = ", ".join(sorted(tail.history.committed)[:20]) or "none yet"
            message = f"task {task!r} of workflow {workflow_id!r} has no committed output; committed: {known}"
            raise WorkflowError(workflow_id, message)
        return _blobs(where, workflow_id).load(record.output)
    finished = tail.history.finished
    if finished is None:
        message = f"workflow {workflow_id!r} has not finished; resume it, or ask for one task's output"
        raise WorkflowError(workflow_id, message)
    raise_unless_successful(workflow_id, finished)
    return result_of(where, workflow_id, load_plan(where, workflow_id, tail), tail.history)


def get_metadata(workflow_id: str, *, store: str | None = None) -> dict[str, Any]:
    """Return status, times and the metadata given at the start, and each committed task's times.

    Times are Unix seconds.
    """
    where = chosen_store(store, create=False)
    tail = read_journal(where, workflow_id)
    history = tail.history
    plan = load_plan(where, workflow_id, tail)
    return {
        "workflow_id": workflow_id,
        "status": str(_status(where, workflow_id, tail)),
        "generation": tail.header.generation,
        "owner": str(tail.header.owner),
        "started_at": history.started.at if history.started else None,
        "finished_at": history.finished.at if history.finished else None,
        "error": history.finished.error if history.finished else None,
        "metadata": dict(plan.metadata),
        "tasks": {
            record.task: {
                "started_at": record.started_at,
                "finished_at": record.finished_at,
                "committed_at": record.committed_at,
            }
            for record in history.committed.values()
        },
    }


def list_all(*, store: str | None = None) -> list[tuple[str, Status]]:
    """Return all workflows of a store with their status, by id."""
    where = chosen_store(store, create=False)
    ids = sorted({key.split("/")[1] for key in where.list("workflows") if "/journal/" in key})
    return [(name, _status(where, name, read_journal(where, name))) for name in ids]


@dataclasses.dataclass(frozen=True, slots=True)
class LoopView:
    """A loop as a reader sees it: what was archived, and the iterations still in the journal."""

    archived: list[bytes]
    iterations: list[IterationView]
    snapshots: Mapping[str, Any]
    plan: Plan
    status: Status
    finished_at: float | None


def read_loop(workflow_id: str, *, loop: str = "loop", store: str | None = None) -> LoopView:
    """Return the committed iterations of a loop; raises WorkflowNotFound, CorruptRecord."""
    where = chosen_store(store, create=False)
    tail = read_journal(where, workflow_id)
    history = tail.history
    blobs = _blobs(where, workflow_id)
    records = [record for record in history.committed.values() if record.loop == loop]
    retired = history.retired.get(loop)
    keys = where.list(archive_folder(workflow_id, loop))
    archived = [where.get(key) for key in archive_tiles(keys, None if retired is None else retired.iteration)]
    return LoopView(
        [data for data in archived if data is not None],
        iteration_views(records, blobs),
        {
            record.task: blobs.load(record.state)
            for record in history.snapshots.values()
            if record.loop == loop and record.state is not None
        },
        load_plan(where, workflow_id, tail),
        _status(where, workflow_id, tail),
        None if history.finished is None else history.finished.at,
    )


# --- for the calls that run workflows, too ------------------------------------------------------------------


def load_plan(store: Store, workflow_id: str, tail: Tail) -> Plan:
    """Return the stored plan; raises WorkflowNotFound when it is missing."""
    started = tail.history.started
    data = None if started is None else store.get(plan_key(workflow_id, started.digest))
    if data is None:
        message = f"the plan of workflow {workflow_id!r} is missing from {store.uri}"
        raise WorkflowNotFound(workflow_id, message)
    return Plan.from_json(json.loads(data))


def result_of(store: Store, workflow_id: str, plan: Plan, history: History) -> Any:
    """Return the result of a workflow that has succeeded."""
    record = _root_record(plan, history)
    if record is None or record.output is None:
        message = f"the result of workflow {workflow_id!r} is missing from its journal"
        raise WorkflowError(workflow_id, message)
    return _blobs(store, workflow_id).load(record.output)


def raise_unless_successful(workflow_id: str, finished: Finished) -> None:
    """Raise what a workflow that has ended otherwise ended with."""
    task, error = finished.task or "", finished.error or ""
    if finished.status is Status.IN_DOUBT:
        raise InDoubt(workflow_id, task, error)
    if finished.status is Status.FAILED:
        raise TaskFailed(workflow_id, task, error) if task else failure(workflow_id, error)


def failure(workflow_id: str, error: str) -> WorkflowError:
    """Return the error of a workflow that failed for no task of its own."""
    message = f"workflow {workflow_id!r} failed: {error}"
    return WorkflowError(workflow_id, message)


def _root_record(plan: Plan, history: History) -> Committed | None:
    committed = history.committed
    if plan.root in committed:
        return committed[plan.root]
    carries = [record for record in committed.values() if record.loop == plan.root and record.carry]
    return max(carries, key=lambda record: record.iteration, default=None)


def _blobs(store: Store, workflow_id: str) -> Blobs:
    return Blobs(store, workflow_id, RayReferences(workflow_id, store.uri))


def _status(store: Store, workflow_id: str, tail: Tail) -> Status:
    finished = tail.history.finished
    if finished is not None:
        return finished.status
    return Status.RUNNING if looks_alive(store, workflow_id, tail.header.owner) else Status.INTERRUPTED
