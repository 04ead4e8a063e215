"""What leaves a workflow's store: iterations that go to the archive, and objects that nothing needs any more.

Only the owner deletes. Each function is a protocol (`exoflow.steps`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from exoflow.blobs import Blobs, blob_folder
from exoflow.journal import Tail, Tenure
from exoflow.messages import Archive, Collect
from exoflow.pins import pinned_blobs
from exoflow.plan import Plan
from exoflow.records import Committed, Record
from exoflow.steps import Delete, List, Put, Steps
from exoflow.storage import Store
from exoflow.views import archive_key, iteration_views


def archive(store: Store, workflow_id: str, plan: Plan, order: Archive) -> Steps[None]:
    """Let the loop's own function make one object of iterations that leave the journal."""
    loop = next(loop for loop in plan.loops if loop.id == order.loop)
    assert loop.archive is not None
    committed = [record for record in order.records if isinstance(record, Committed)]
    data = loop.archive.load()(iteration_views(committed, Blobs(store, workflow_id)))
    yield Put(archive_key(workflow_id, loop.id, order.first, order.last), data)


def collect(
    workflow_id: str, tenure: Tenure, order: Collect, lease_seconds: float, clock: Callable[[], float] = time.time
) -> Steps[None]:
    """Delete what a fold has made superfluous; pins are read after the fold, see `exoflow.pins`.

    Raises
    ------
    Fenced
        When another owner is found to have claimed the workflow.
    """
    yield from tenure.make_sure(lease_seconds / 2)
    pinned = yield from pinned_blobs(workflow_id, clock)
    for blob in order.blobs:
        if blob.name not in pinned:
            yield from tenure.make_sure(lease_seconds / 2)
            yield Delete(f"{blob_folder(workflow_id)}/{blob.name}")
    yield from tenure.collect()


def claim(workflow_id: str, tenure: Tenure, tail: Tail | None, first: Sequence[Record] = ()) -> Steps[list[str]]:
    """Claim a workflow, and return the keys of the blobs that were there before: what `sweep` may delete.

    Raises
    ------
    Fenced
        When another owner was faster.
    """
    found: list[str] = yield List(blob_folder(workflow_id))
    yield from tenure.claim(tail, first)
    return found


def sweep(workflow_id: str, found: Sequence[str], live: set[str], clock: Callable[[], float] = time.time) -> Steps[int]:
    """Delete blobs that no record names, left by owners that died; return how many.

    ``found`` was listed before the claim. So whatever a successor of this owner writes is safe, however
    late the deletion comes; and this owner's own blobs, which exist before their records do, are too.
    """
    keep = live | (yield from pinned_blobs(workflow_id, clock))
    dead = [key for key in found if key.rsplit("/", 1)[1] not in keep]
    for key in dead:
        yield Delete(key)
    return len(dead)
