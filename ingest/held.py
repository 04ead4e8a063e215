"""A file that is held open: what was digested is what is read, whatever becomes of its name meanwhile."""

import hashlib
import io
import os
import weakref
from typing import Final

import pyarrow as pa

_READ_BYTES: Final = 1024 * 1024
CONTENT_BYTES: Final = 16
"""Bytes of SHA-256 by which contents are told apart."""


class Held:
    """An open file; closed with the last that reads it.

    Parameters
    ----------
    fd
        Its descriptor, for reading; it now belongs to this.
    tag
        What tells it from an edited one of the same name at a glance.
    """

    def __init__(self, fd: int, tag: str = "") -> None:
        self.fd = fd
        self.tag = tag
        self.content = ""
        self._stat = self._now()
        weakref.finalize(self, os.close, fd)

    @property
    def size(self) -> int:
        """Bytes of the file now."""
        return os.fstat(self.fd).st_size

    def digest(self) -> None:
        """Set `content` to 32 hexadecimal digits that stand for all its bytes."""
        found, at = hashlib.sha256(), 0
        self._stat = self._now()
        while data := os.pread(self.fd, _READ_BYTES, at):
            found.update(data)
            at += len(data)
        self.content = found.digest()[:CONTENT_BYTES].hex()

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is what it was when it was digested, as far as its size and time say."""
        return self._stat == self._now()

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self.fd)
        return found.st_size, found.st_mtime_ns

    def open(self, size: int | None = None) -> pa.NativeFile:
        """Open the file from its beginning, up to a size."""
        return pa.PythonFile(_View(self, self.size if size is None else size), mode="r")

    def read(self, at: int, size: int) -> bytes:
        """Return bytes; fewer only at the end."""
        parts = []
        while size > 0 and (data := os.pread(self.fd, min(size, _READ_BYTES), at)):
            parts.append(data)
            at += len(data)
            size -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _View(io.RawIOBase):
    """The bytes of a held file, with an offset of its own."""

    def __init__(self, held: Held, size: int) -> None:
        super().__init__()
        self._held = held
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._held.read(self._at, wanted)
        if len(data) < wanted:  # never passed off as the end, in the middle of a line
            message = "it was cut back while it was read"
            raise OSError(message)
        self._at += wanted
        return data
