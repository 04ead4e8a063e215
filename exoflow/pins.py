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
from collections.abc import Iterable, Iterator

from exoflow.codec import Blob
from exoflow.journal import workflow_folder
from exoflow.storage import Store

DEFAULT_SECONDS = 24 * 3600.0


def _folder(workflow_id: str) -> str:
    return f"{workflow_folder(workflow_id)}/pins"


@contextlib.contextmanager
def pin(store: Store, workflow_id: str, blobs: Iterable[Blob], *, seconds: float = DEFAULT_SECONDS) -> Iterator[None]:
    """Keep blobs from being collected inside the block, and for at most ``seconds`` if this process dies."""
    key = f"{_folder(workflow_id)}/{uuid.uuid4().hex}"
    names = sorted({blob.name for blob in blobs})
    store.put(key, json.dumps({"expires_at": time.time() + seconds, "blobs": names}).encode("ascii"))
    try:
        yield
    finally:
        store.delete(key)


def pinned_blobs(store: Store, workflow_id: str) -> set[str]:
    """Return the names of all blobs that a pin in force names."""
    names: set[str] = set()
    for key in store.list(_folder(workflow_id)):
        data = store.get(key)
        if data is None:
            continue
        shown = json.loads(data)
        if shown["expires_at"] > time.time():
            names.update(shown["blobs"])
        else:
            store.delete(key)
    return names
