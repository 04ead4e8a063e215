"""What has been read of a queue of files: who they were and what was in them, in 49 bytes each.

A row is a digest of the name, of what tells a file from an edited one at a glance (its *tag*), of its content, and
whether anything of it was read. Rows are added and never changed, so what is new of a register is its last rows.
"""

import hashlib
from typing import Final

_DIGEST_BYTES: Final = 16
ROW_BYTES: Final = 3 * _DIGEST_BYTES + 1


def digest_of(text: str) -> bytes:
    """Return 16 bytes that stand for a text, also for a file name that is not UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:_DIGEST_BYTES]


class Register:
    """Rows in memory, found by name.

    What is added counts from the next `commit` on; until then `rollback` forgets it.
    """

    def __init__(self) -> None:
        self._rows = bytearray()
        self._committed = 0
        self._index: dict[bytes, int | tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._rows) // ROW_BYTES

    @property
    def committed(self) -> int:
        """How many rows count."""
        return self._committed

    def knows(self, name: str) -> bool:
        """Whether there is a row of this name."""
        return digest_of(name) in self._index

    def has_tag(self, name: str, tag: str) -> bool:
        """Whether a file of this name had this tag."""
        return digest_of(tag) in [self._part(row, 1) for row in self._rows_of(name)]

    def has_content(self, name: str, content: str) -> bool:
        """Whether a file of this name had this content, 32 hexadecimal digits."""
        return bytes.fromhex(content) in [self._part(row, 2) for row in self._rows_of(name)]

    def was_read(self, name: str) -> bool:
        """Whether anything of a file of this name was read."""
        return any(self._rows[(row + 1) * ROW_BYTES - 1] for row in self._rows_of(name))

    def add(self, name: str, tag: str, content: str, read: bool) -> None:
        """Add a row."""
        self._append(digest_of(name) + digest_of(tag) + bytes.fromhex(content) + bytes([read]))

    def commit(self) -> None:
        """Let all rows count."""
        self._committed = len(self)

    def rollback(self) -> None:
        """Forget the rows that do not count."""
        while len(self) > self._committed:
            key = self._part(len(self) - 1, 0)
            found = self._index.pop(key)
            if isinstance(found, tuple):
                self._index[key] = found[0] if len(found) == 2 else found[:-1]
            del self._rows[-ROW_BYTES:]

    def rows(self, first: int, last: int) -> bytes:
        """Return the rows from number `first` up to `last`, counted from 0."""
        return bytes(self._rows[first * ROW_BYTES : last * ROW_BYTES])

    def load(self, rows: bytes) -> None:
        """Add what `rows` returned; it counts."""
        for at in range(0, len(rows), ROW_BYTES):
            self._append(rows[at : at + ROW_BYTES])
        self.commit()

    def _append(self, row: bytes) -> None:
        key, number = row[:_DIGEST_BYTES], len(self)
        found = self._index.get(key)
        if found is None:
            self._index[key] = number
        else:
            self._index[key] = (*(found if isinstance(found, tuple) else (found,)), number)
        self._rows += row

    def _rows_of(self, name: str) -> tuple[int, ...]:
        found = self._index.get(digest_of(name), ())
        return found if isinstance(found, tuple) else (found,)

    def _part(self, row: int, part: int) -> bytes:
        at = row * ROW_BYTES + part * _DIGEST_BYTES
        return bytes(self._rows[at : at + _DIGEST_BYTES])
