"""The functions users call to run workflows: run, resume, resolve. What is read of them: `exoflow.readers`."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from exoflow.blobs import Blobs
from exoflow.cluster import ensure_ray
from exoflow.controller import Controller, Observer
from exoflow.dag import Node, Stop
from exoflow.effects import Done, NotDone
from exoflow.errors import (
    DefinitionError,
    Fenced,
    PlanMismatch,
    WorkflowError,
    WorkflowNotFound,
    WorkflowRunning,
)
from exoflow.journal import Journal, Tail, plan_key, read_journal
from exoflow.ownership import LEASE_SECONDS, HeartbeatThread, this_process, wait_until_claimable
from exoflow.plan import Plan, build, difference, digest_of
from exoflow.readers import failure, load_plan, result_of
from exoflow.records import Cleared, Committed, Finished, Record, Started, Status
from exoflow.settings import chosen_store, ray_options
from exoflow.storage import Store

MAX_CLAIMS = 10

logger = logging.getLogger(__name__)
_WORKFLOW_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def run(
    node: Node,
    *,
    workflow_id: str,
    store: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    replicas: Mapping[str, int] | None = None,
    hints: Mapping[str, Any] | None = None,
    take_over: bool = False,
    on_change: str = "refuse",
    observer: Observer | None = None,
    lease_seconds: float = LEASE_SECONDS,
    max_claims: int = MAX_CLAIMS,
) -> Any:
    """Run a workflow to its end and return its result.

    The same id with the same plan resumes it; one that has finished returns its recorded result.

    Parameters
    ----------
    node : Node
        The task whose output is the result.
    workflow_id : str
        Letters, digits, ``.``, ``_`` and ``-``; chosen by the user, who resumes by it.
    store : str, optional
        A folder or ``s3://BUCKET/PREFIX``; default: the one given to `init`.
    metadata : mapping, optional
        Anything JSON can hold, kept with the plan.
    replicas : mapping, optional
        Group sizes that override those of the plan, by actor.
    hints : mapping, optional
        How to run, for this owner alone: bodies read it as ``exoflow.context().hints``. It is not recorded, and
        nothing that is computed may depend on it; a limit of memory is one.
    take_over : bool
        Claim the workflow although its owner looks alive.
    on_change : {"refuse", "continue"}
        What to do when a task's code is not what it was.
    observer : Observer, optional
        Is told of outputs and commits as they happen.
    lease_seconds : float
        How long an owner elsewhere must be silent before it counts as gone.
    max_claims : int
        After so many owners in a row that committed nothing the workflow fails instead of crashing another.

    Raises
    ------
    DefinitionError, PlanMismatch, WorkflowRunning, TaskFailed, InDoubt, StorageUnavailable, CorruptRecord, Fenced
    """
    _check_id(workflow_id)
    plan = build(node, metadata)
    where = chosen_store(store)
    tail = _tail(where, workflow_id)
    if tail is not None:
        stored = load_plan(where, workflow_id, tail)
        if stored.digest != plan.digest:
            _refuse_other_plan(workflow_id, stored, plan)
        plan = _with_todays_code(workflow_id, stored, on_change)
    return _own(where, workflow_id, plan, tail, replicas, hints, take_over, observer, lease_seconds, max_claims)


def resume(
    workflow_id: str,
    *,
    store: str | None = None,
    replicas: Mapping[str, int] | None = None,
    hints: Mapping[str, Any] | None = None,
    take_over: bool = False,
    on_change: str = "refuse",
    observer: Observer | None = None,
    lease_seconds: float = LEASE_SECONDS,
    max_claims: int = MAX_CLAIMS,
) -> Any:
    """Run a known workflow to its end from what is committed, and return its result. See `run`.

    Raises
    ------
    WorkflowNotFound
        When the store has no such workflow; nothing is written then.
    """
    _check_id(workflow_id)
    # An unknown id must leave no trace, so the store is opened for writing only once there is a journal.
    tail = read_journal(chosen_store(store, create=False), workflow_id)
    where = chosen_store(store)
    plan = _with_todays_code(workflow_id, load_plan(where, workflow_id, tail), on_change)
    return _own(where, workflow_id, plan, tail, replicas, hints, take_over, observer, lease_seconds, max_claims)


class Handle:
    """A workflow that runs in a thread of this process; made by `run_async`."""

    def __init__(self, workflow_id: str) -> None:
        self.workflow_id = workflow_id
        self._future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the result, or raise the error, of the workflow."""
        return self._future.result(timeout)

    def done(self) -> bool:
        """Whether the workflow has ended."""
        return self._future.done()

    def _run(self, node: Node, options: Mapping[str, Any]) -> None:
        try:
            self._future.set_result(run(node, workflow_id=self.workflow_id, **options))
        except BaseException as error:
            self._future.set_exception(error)


def run_async(node: Node, *, workflow_id: str, **options: Any) -> Handle:
    """Start a workflow in a thread of this process and return a handle at once. Options as in `run`."""
    handle = Handle(workflow_id)
    name = f"exoflow-{workflow_id}"
    threading.Thread(target=handle._run, args=(node, options), name=name, daemon=True).start()
    return handle


def resolve(workflow_id: str, task: str, verdict: Done | NotDone, *, store: str | None = None) -> None:
    """Say what became of an effect that is in doubt, so that the workflow can be resumed.

    Parameters
    ----------
    workflow_id, task : str
        Whose effect; the task's id as in the error, such as ``"send"`` or ``"send[12]"``.
    verdict : Done or NotDone
        It happened, and the task's output is ``Done.value``; or it did not, and the body runs again.
    store : str, optional
        A folder or ``s3://BUCKET/PREFIX``; default: the one given to `init`.

    Raises
    ------
    WorkflowNotFound, WorkflowRunning
        When there is no such workflow, or a live owner holds it.
    WorkflowError
        When no effect of the task is in doubt, saying which are.
    """
    _check_id(workflow_id)
    read_journal(chosen_store(store, create=False), workflow_id)
    where = chosen_store(store)
    tail = wait_until_claimable(where, workflow_id)
    history = tail.history
    if not history.in_doubt(task):
        known = ", ".join(sorted(name for name in history.intended if history.in_doubt(name))) or "none"
        message = f"no effect of task {task!r} of workflow {workflow_id!r} is in doubt; in doubt: {known}"
        raise WorkflowError(workflow_id, message)
    intent = history.intended[task]
    record: Record
    if isinstance(verdict, Done):
        stop = isinstance(verdict.value, Stop)
        output = Blobs(where, workflow_id).durable(verdict.value.value if stop else verdict.value)
        record = Committed(task, 0, output, carry=intent.carry, stop=stop, loop=intent.loop, iteration=intent.iteration)
    else:
        record = Cleared(task, intent.generation, intent.loop, intent.iteration)
    _claim_once(where, workflow_id, tail, [record])


# --- inside -----------------------------------------------------------------------------------------------


def _check_id(workflow_id: str) -> None:
    if not _WORKFLOW_ID.fullmatch(workflow_id):
        message = (
            f"workflow id {workflow_id!r} is not usable: at most 128 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
        raise DefinitionError(message)


def _tail(store: Store, workflow_id: str) -> Tail | None:
    try:
        return read_journal(store, workflow_id)
    except WorkflowNotFound:
        return None


def _refuse_other_plan(workflow_id: str, stored: Plan, given: Plan) -> None:
    lines = difference(stored, given)
    shown = "\n  ".join(lines[:20])
    message = (
        f"workflow {workflow_id!r} exists with another plan (stored -> given):\n  {shown}\n"
        "resume it as it is, or choose another workflow_id"
    )
    raise PlanMismatch(workflow_id, message)


def _with_todays_code(workflow_id: str, plan: Plan, on_change: str) -> Plan:
    """Return the plan, its changed tasks counted as nondeterministic; refuse changed code unless told otherwise."""
    if on_change not in ("refuse", "continue"):
        message = f"on_change must be 'refuse' or 'continue', got {on_change!r}"
        raise DefinitionError(message)
    changed = [name for name, code in plan.code() if code.changed()]
    if not changed:
        return plan
    if on_change == "refuse":
        message = (
            f"the code of {', '.join(changed)} has changed since workflow {workflow_id!r} began; "
            "resume with on_change='continue' if the new code may finish what the old code began"
        )
        raise PlanMismatch(workflow_id, message)
    logger.warning("workflow %s continues with changed code of %s", workflow_id, ", ".join(changed))
    return plan.with_changed(changed)


def _own(
    store: Store,
    workflow_id: str,
    plan: Plan,
    tail: Tail | None,
    replicas: Mapping[str, int] | None,
    hints: Mapping[str, Any] | None,
    take_over: bool,
    observer: Observer | None,
    lease_seconds: float,
    max_claims: int,
) -> Any:
    if tail is not None and _succeeded(tail):
        return result_of(store, workflow_id, plan, tail.history)
    first: list[Record] = []
    if tail is None:
        shown = plan.to_json()
        digest = digest_of(shown)
        store.put(plan_key(workflow_id, digest), json.dumps(shown).encode("ascii"))
        first = [Started(digest, uuid.uuid4().hex, time.time())]
    elif not take_over:
        tail = wait_until_claimable(store, workflow_id, lease_seconds=lease_seconds)
        if _succeeded(tail):
            return result_of(store, workflow_id, plan, tail.history)
    if tail is not None and tail.history.barren_claims >= max_claims:
        _end_crash_loop(store, workflow_id, tail)
    try:
        controller = Controller(
            store,
            workflow_id,
            plan,
            tail,
            first,
            replicas=replicas,
            hints=hints,
            observer=observer,
            lease_seconds=lease_seconds,
        )
    except Fenced as error:
        raise _running(store, workflow_id) from error
    try:
        ensure_ray(**ray_options())
        controller.run()
    finally:
        controller.close()
    return result_of(store, workflow_id, plan, controller.history)


def _end_crash_loop(store: Store, workflow_id: str, tail: Tail) -> NoReturn:
    """Fail a workflow whose owners died one after the other before they had committed anything."""
    count = tail.history.barren_claims
    error = f"{count} owners in a row ended before anything was committed; see why, then resume to try again"
    _claim_once(store, workflow_id, tail, [Finished(Status.FAILED, time.time(), None, error)])
    raise failure(workflow_id, error)


def _claim_once(store: Store, workflow_id: str, tail: Tail, records: Sequence[Record]) -> None:
    """Own a workflow just long enough to append records."""
    owner = this_process()
    try:
        Journal(store, workflow_id, owner, lambda: uuid.uuid4().hex).claim(tail, records)
    except Fenced as error:
        raise _running(store, workflow_id) from error
    HeartbeatThread(store, workflow_id, owner.nonce, LEASE_SECONDS).release()


def _running(store: Store, workflow_id: str) -> WorkflowRunning:
    return WorkflowRunning(workflow_id, str(read_journal(store, workflow_id).header.owner))


def _succeeded(tail: Tail) -> bool:
    finished = tail.history.finished
    return finished is not None and finished.status is Status.SUCCESSFUL
