"""Merging a snapshot's objects beside the stream, so that no epoch waits for it.

A checkpoint is durable as soon as its own object is. Older ones are merged in a thread of their own, which gives way
to everything else, and the next checkpoint after that names the result in their place. A result that no checkpoint has
come to name, because the process died, is an object that nothing names; the next owner removes it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, Self, TypeVar

Entry = TypeVar("Entry")
"""What says where an object is, and what it covers."""


class Manifest(Protocol[Entry]):
    """A list of adjacent entries, which never changes."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries in order."""
        ...

    def due(self) -> slice | None:
        """Return which entries to merge next, None if nothing is due."""
        ...

    def replace(self, merged: Entry, /) -> Self:
        """Return a manifest with the entries that ``merged`` covers replaced by it."""
        ...


Entries = TypeVar("Entries", bound=Manifest)  # type: ignore[type-arg]  # of the entries that it is given

LOWEST_PRIORITY = 19
REST = 3.0
"""How long a merge stays away between two parts, in times of what the last part took of a processor."""
MOST_ENTRIES = 64
"""A manifest this long waits: objects come faster than they are merged."""


class Compaction(Generic[Entry]):
    """At most one merge under way, of the entries of one manifest.

    Parameters
    ----------
    merge : callable
        Merges adjacent entries into one, reading and writing their objects; called in a thread of its own.
    most_entries : int
        From this length on a manifest waits for the merge under way.
    """

    def __init__(self, merge: Callable[[tuple[Entry, ...]], Entry], most_entries: int = MOST_ENTRIES) -> None:
        self._merge = merge
        self._most_entries = most_entries
        self._pool = ThreadPoolExecutor(1, "compaction", _give_way)
        self._under_way: Future[Entry] | None = None
        self._awaited = threading.Event()
        self._rested_at = 0.0

    def next(self, manifest: Entries, *, settle: bool = False) -> Entries:
        """Return the manifest with what has been merged since the last call, and begin the next merge if one is due.

        Parameters
        ----------
        manifest : Manifest
            What the last call returned, and more behind it.
        settle : bool
            Wait until no merge is due any more: nothing comes after this manifest.

        Raises
        ------
        Exception
            What a merge has raised. It is due again at the next call.
        """
        while True:
            manifest = self._with_merged(manifest, wait=settle or len(manifest.entries) >= self._most_entries)
            if self._under_way is None and (due := manifest.due()) is not None:
                self._under_way = self._pool.submit(self._merge, manifest.entries[due])
            waits = self._under_way is not None and len(manifest.entries) >= self._most_entries
            if not waits and not (settle and self._under_way is not None):
                return manifest

    def rest(self) -> None:
        """Stay away for a while, unless somebody waits; for a merge to call between its parts.

        Also at the lowest priority a processor that works slows down the others, who share caches and memory with it.
        """
        self._awaited.wait(REST * (time.thread_time() - self._rested_at))
        self._rested_at = time.thread_time()

    def _with_merged(self, manifest: Entries, *, wait: bool) -> Entries:
        merge = self._under_way
        if merge is None or not (wait or merge.done()):
            return manifest
        self._under_way = None
        self._awaited.set()
        try:
            return manifest.replace(merge.result())
        finally:
            self._awaited.clear()


def _give_way() -> None:
    """Let the calling thread run when no other wants to; Linux has a priority for each, elsewhere nothing changes."""
    if sys.platform == "linux":
        # A sandbox that forbids it costs some speed, nothing else.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
