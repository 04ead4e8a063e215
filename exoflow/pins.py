"""Pins: how a reader keeps blobs from being collected while it reads them.

Reader and owner shake hands without a clock. The reader writes its pin, then reads the journal once more;
the owner writes its fold, then reads the pins. So either the reader sees the fold and knows that it came
too late, or the owner sees the pin.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator

from exoflow.codec import Blob
from exoflow.journal import workflow_folder
from exoflow.steps import Delete, Get, List, Put, Steps
from exoflow.storage import Store

DEFAULT_SECONDS = 24 * 3600.0


def _folder(workflow_id: str) -> str:
    return f"{workflow_folder(workflow_id)}/pins"


@contextlib.contextmanager
def pin(store: Store, workflow_id: str, blobs: Iterable[Blob], *, seconds: float = DEFAULT_SECONDS) -> Iterator[None]:
    """Keep blobs from being collected inside the block, and for at most ``seconds`` if this process dies."""
    written = pin_object(workflow_id, uuid.uuid4().hex, blobs, time.time() + seconds)
    store.put(written.key, written.data)
    try:
        yield
    finally:
        store.delete(written.key)


def pin_object(workflow_id: str, reader: str, blobs: Iterable[Blob], expires_at: float) -> Put:
    """Return the write that makes a reader's pin; ``expires_at`` in Unix seconds."""
    names = sorted({blob.name for blob in blobs})
    return Put(
        f"{_folder(workflow_id)}/{reader}", json.dumps({"expires_at": expires_at, "blobs": names}).encode("ascii")
    )


def pinned_blobs(workflow_id: str, clock: Callable[[], float] = time.time) -> Steps[set[str]]:
    """Return the names of all blobs that a pin in force names, and delete pins that have run out."""
    names: set[str] = set()
    for key in (yield List(_folder(workflow_id))):
        data = yield Get(key)
        if data is None:
            continue
        shown = json.loads(data)
        if shown["expires_at"] > clock():
            names.update(shown["blobs"])
        else:
            yield Delete(key)
    return names
