"""Small objects inside the record that commits them, so that a commit that is waited for is one write of the store.

An object and the record that names it are two writes, one after the other. In ``sync`` a small object lies in the
record itself, is written to the store beside that, and the next record names it there. Who dies in between has lost
nothing: the record has the object, and what was written beside it is removed by the next owner.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import exoflow
from graph_stream.snapshot import Entry, Manifest

INLINE_BYTES = 40 * 1024
"""Most bytes of an inline object: as text, with a manifest, they fit into a record (`exoflow.blobs.INLINE_BYTES`)."""

ReadBlob = Callable[[exoflow.Blob], bytes]
WriteBlob = Callable[[bytes], exoflow.Blob]


def inline_entry(first_epoch: int, last_epoch: int, rows: int, data: bytes) -> Entry:
    """Return an entry that holds its object itself."""
    return Entry(first_epoch, last_epoch, rows, base64.b64encode(data).decode("ascii"))


def is_inline(entry: Entry) -> bool:
    """Whether an entry holds its object itself."""
    return isinstance(entry.blob, str)


def data_of(entry: Entry) -> bytes:
    """Return the object that an inline entry holds."""
    return base64.b64decode(entry.blob)


def read(entry: Entry, read_blob: ReadBlob) -> bytes:
    """Return an entry's object; raises as ``read_blob``."""
    return data_of(entry) if is_inline(entry) else read_blob(entry.blob)


class Behind:
    """Writes inline objects to the store beside the record that holds them.

    Parameters
    ----------
    write : callable
        Makes bytes durable; called in a thread of its own.
    """

    def __init__(self, write: WriteBlob) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(1, "inline")
        self._under_way: dict[int, Future[exoflow.Blob]] = {}

    def begin(self, entry: Entry) -> None:
        """Begin to write an inline entry's object."""
        self._under_way[entry.last_epoch] = self._pool.submit(self._write, data_of(entry))

    def settle(self, manifest: Manifest) -> tuple[Manifest, list[exoflow.Blob]]:
        """Return the manifest with all its objects in the store, and the blobs that this put in.

        A record must name those blobs even if its manifest no longer does: what no record ever names is never removed.

        Raises
        ------
        Exception
            What a write has raised; it is done again at the next call.
        """
        written = []
        for entry in manifest.entries:
            if is_inline(entry):
                if entry.last_epoch not in self._under_way:
                    self.begin(entry)
                blob = self._under_way.pop(entry.last_epoch).result()
                manifest = manifest.replace(Entry(entry.first_epoch, entry.last_epoch, entry.rows, blob))
                written.append(blob)
        return manifest, written
