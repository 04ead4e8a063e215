"""May this store carry journals? Ownership rests on one promise: of many that create a key, one does.

Some S3 servers look whether a key exists and then write, so that two of them win; file systems can be
mounted over networks that break promises, too. So a store is tried before it is trusted: many threads
create one key at the same time, again and again. What passed is remembered in the store for a day, by the
name of the server or file system that passed, so that workers and later commands need not pay for it again.
"""

from __future__ import annotations

import functools
import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from exoflow.errors import StorageUnavailable

FOLDER = ".probe"
THREADS = 16
ROUNDS = 6
REMEMBERED_SECONDS = 24 * 3600
_MARK = f"{FOLDER}/passed"
_TRIES = 6


class _Verbs(Protocol):
    uri: str

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...

    def put_if_absent(self, key: str, data: bytes) -> bool: ...

    def list(self, prefix: str) -> list[str]: ...

    def delete(self, key: str) -> None: ...


def require_one_winner(store: _Verbs, identity: str, *, clock: Callable[[], float] = time.time) -> None:
    """Refuse a store on which creating a key has more than one winner, or reads are behind writes.

    Parameters
    ----------
    store : Store
        What is tried.
    identity : str
        Names the server or file system itself. A folder copied elsewhere, mark and all, is tried anew.

    Raises
    ------
    StorageUnavailable
        With the reason; also when the store cannot be written or cleaned.
    """
    if _passed_lately(store.get(_MARK), identity, clock()):
        return
    folder = f"{FOLDER}/{uuid.uuid4().hex}"
    keys = [f"{folder}/{number}" for number in range(ROUNDS)]
    # After an outage the keys stay, for whoever cleaned up would wait for the store again.
    reason = _first_broken_promise(store, folder, keys)
    for key in keys:
        store.delete(key)
    if reason is None and store.list(folder):
        reason = "deleted keys are still listed"
    if reason is not None:
        message = f"the store {store.uri} cannot keep journals: {reason}; use another server or file system"
        raise StorageUnavailable(folder, message)
    store.put(_MARK, json.dumps({"identity": identity, "at": clock()}).encode("ascii"))


def _passed_lately(mark: bytes | None, identity: str, now: float) -> bool:
    try:
        passed = json.loads(mark or b"{}")
        return bool(passed["identity"] == identity and 0 <= now - passed["at"] < REMEMBERED_SECONDS)
    except (ValueError, KeyError, TypeError):
        return False


def _first_broken_promise(store: _Verbs, folder: str, keys: list[str]) -> str | None:
    with ThreadPoolExecutor(THREADS, thread_name_prefix="exoflow-probe") as pool:
        for key in keys:
            start = threading.Barrier(THREADS)
            tried = list(pool.map(functools.partial(_contend, store, key, start), range(THREADS)))
            winners = [number for number, (won, _) in enumerate(tried) if won]
            if len(winners) != 1:
                return f"of {THREADS} concurrent conditional creates of one key {len(winners)} succeeded, not one"
            if any(seen != _content(winners[0]) for _, seen in tried):
                return "a key that had just been created was read as absent, or with other bytes"
    if store.list(folder) != sorted(keys):
        return "keys that had just been created are not listed"
    return None


def _contend(store: _Verbs, key: str, start: threading.Barrier, number: int) -> tuple[bool, bytes | None]:
    """Return whether this thread created the key, and what it read there afterwards."""
    start.wait()
    for left in reversed(range(_TRIES)):
        try:
            won = store.put_if_absent(key, _content(number))
            return won, store.get(key)
        except StorageUnavailable:
            # Nobody knows who won; a server may also ask for another try when many come at once.
            seen = store.get(key)
            if seen is not None:
                return seen == _content(number), seen
            if not left:
                raise
    raise AssertionError


def _content(number: int) -> bytes:
    return f"thread {number}".encode("ascii")
