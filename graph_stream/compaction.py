"""Merging a snapshot's objects beside the stream, so that no epoch waits for it.

A checkpoint is durable as soon as its own object is. Older ones are merged in a thread of their own, and the next
checkpoint after that names the result in their place. A result that no checkpoint has come to name, because the
process died, is an object that nothing names; the next owner removes it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from graph_stream.snapshot import Entry, Manifest, plan_compaction

MOST_ENTRIES = 64
"""A manifest this long waits: objects come faster than they are merged."""

Merge = Callable[[tuple[Entry, ...]], Entry]
"""Merges adjacent entries into one, reading and writing their objects."""


class Compaction:
    """At most one merge under way, of the entries of one manifest.

    Parameters
    ----------
    merge : callable
        Does one; called in a thread of its own.
    most_entries : int
        From this length on a manifest waits for the merge under way.
    """

    def __init__(self, merge: Merge, most_entries: int = MOST_ENTRIES) -> None:
        self._merge = merge
        self._most_entries = most_entries
        self._pool = ThreadPoolExecutor(1, "compaction")
        self._under_way: Future[Entry] | None = None

    def next(self, manifest: Manifest, *, settle: bool = False) -> Manifest:
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
            if self._under_way is None and (due := plan_compaction(manifest)) is not None:
                self._under_way = self._pool.submit(self._merge, manifest.entries[due])
            waits = self._under_way is not None and len(manifest.entries) >= self._most_entries
            if not waits and not (settle and self._under_way is not None):
                return manifest

    def _with_merged(self, manifest: Manifest, *, wait: bool) -> Manifest:
        merge = self._under_way
        if merge is None or not (wait or merge.done()):
            return manifest
        self._under_way = None
        return manifest.replace(merge.result())
