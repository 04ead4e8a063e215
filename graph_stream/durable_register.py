"""How a register of what is over becomes durable with an epoch: the newest rows in the state, the others in blobs.

Blobs are merged as they become many, each at least twice as large as the next, so that there are never more of them
than the logarithm of the rows, and a row is written again only that often. The state of an epoch stays small however
many files a run has read.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from exoflow import Blob
from ingest import Register

INLINE_ROWS = 64
"""More new rows than so many become a blob."""


class DurableRegister:
    """What is stored of a register.

    Parameters
    ----------
    register : Register
        The register itself; rows are only ever added.
    write_blob : callable
        Makes bytes durable.
    """

    def __init__(self, register: Register, write_blob: Callable[[bytes], Blob]) -> None:
        self._register = register
        self._write_blob = write_blob
        self._blobs: list[tuple[int, Blob]] = []

    def capture(self) -> dict[str, Any]:
        """Return the rows that count: JSON-able, but for the blobs."""
        count, stored = self._register.committed, sum(rows for rows, _ in self._blobs)
        if count - stored > INLINE_ROWS:
            while self._blobs and self._blobs[-1][0] < 2 * (count - stored):
                stored -= self._blobs.pop()[0]
            self._blobs.append((count - stored, self._write_blob(self._register.rows(stored, count))))
            stored = count
        newest = base64.b64encode(self._register.rows(stored, count)).decode()
        return {"blobs": [[rows, blob] for rows, blob in self._blobs], "newest": newest}

    def restore(self, captured: dict[str, Any], read_blob: Callable[[Blob], bytes]) -> None:
        """Invert `capture`, of a register that is empty."""
        self._blobs = [(rows, blob) for rows, blob in captured["blobs"]]
        for _, blob in self._blobs:
            self._register.load(read_blob(blob))
        self._register.load(base64.b64decode(captured["newest"]))
