"""Merging a snapshot's objects beside the stream, so that no epoch waits for it.

A checkpoint is durable as soon as its own object is. Older ones are merged in threads of their own, which give way
to everything else, and the next checkpoint after that names the result in their place. Large merges take long, so
small ones of younger objects go on beside them: else objects, and with them what each commit has to name, would heap
up meanwhile. A result that no checkpoint has come to name, because the process died, is an object that nothing names;
the next owner removes it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
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

    def due(self, first: int = 0, /) -> slice | None:
        """Return which entries, of those from number ``first`` on, to merge next; None if nothing is due."""
        ...

    def replace(self, merged: Entry, /) -> Self:
        """Return a manifest with the entries that ``merged`` covers replaced by it."""
        ...


Entries = TypeVar("Entries", bound=Manifest)  # type: ignore[type-arg]  # of the entries that it is given

LOWEST_PRIORITY = 19
REST = 3.0
"""How long a merge stays away between two parts, in times of what the last part took of a processor."""
MOST_MERGES = 4
"""Merges at a time: one on each level of age that a stream soon reaches."""
MOST_ENTRIES = 64
"""A manifest this long waits: objects come faster than they are merged."""


@dataclasses.dataclass
class _Merge(Generic[Entry]):
    """A merge under way of the entries of a manifest up to the one before number ``stop``."""

    entries: int
    stop: int
    result: Future[Entry]


class Compaction(Generic[Entry]):
    """Merges under way, of the entries of one manifest.

    Parameters
    ----------
    merge : callable
        Merges adjacent entries into one, reading and writing their objects; called in a thread of its own, for
        several such groups at a time.
    most_entries : int
        From this length on a manifest waits for a merge under way.
    """

    def __init__(self, merge: Callable[[tuple[Entry, ...]], Entry], most_entries: int = MOST_ENTRIES) -> None:
        self._merge = merge
        self._most_entries = most_entries
        self._pool = ThreadPoolExecutor(MOST_MERGES, "compaction", _give_way)
        self._under_way: list[_Merge[Entry]] = []
        """In the order of what they merge."""
        self._awaited = threading.Event()
        self._rested = threading.local()

    def next(self, manifest: Entries, *, settle: bool = False) -> Entries:
        """Return the manifest with what has been merged since the last call, and begin the merges that are due.

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
            while (due := manifest.due(self._busy)) is not None:
                merging = manifest.entries[due]
                self._under_way.append(_Merge(len(merging), due.stop, self._pool.submit(self._merge, merging)))
            waits = bool(self._under_way) and len(manifest.entries) >= self._most_entries
            if not waits and not (settle and self._under_way):
                return manifest

    def rest(self) -> None:
        """Stay away for a while, unless somebody waits; for a merge to call between its parts.

        Also at the lowest priority a processor that works slows down the others, who share caches and memory with it.
        """
        self._awaited.wait(REST * (time.thread_time() - getattr(self._rested, "at", 0.0)))
        self._rested.at = time.thread_time()

    @property
    def _busy(self) -> int:
        """Number of entries up to the last one that is being merged: only younger ones may be merged besides."""
        return self._under_way[-1].stop if self._under_way else 0

    def _with_merged(self, manifest: Entries, *, wait: bool) -> Entries:
        if wait and self._under_way:
            self._awaited.set()
            results = [merge.result for merge in self._under_way]
            concurrent.futures.wait(results, return_when=concurrent.futures.FIRST_COMPLETED)
            self._awaited.clear()
        ended = [merge for merge in self._under_way if merge.result.done()]
        for merge in ended:
            # Before any result is taken: who is told of an error keeps the manifest that he has.
            if (error := merge.result.exception()) is not None:
                self._under_way.remove(merge)
                raise error
        for merge in ended:
            at = self._under_way.index(merge)
            del self._under_way[at]
            manifest = manifest.replace(merge.result.result())
            for younger in self._under_way[at:]:
                younger.stop -= merge.entries - 1
        return manifest


def _give_way() -> None:
    """Let the calling thread run when no other wants to; Linux has a priority for each, elsewhere nothing changes."""
    if sys.platform == "linux":
        # A sandbox that forbids it costs some speed, nothing else.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
