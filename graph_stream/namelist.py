"""The dictionary of a run: its names by number, in the order in which they first came; nothing ever changes or leaves.

One arena of bytes and where each name ends in it, in arrays that grow where they are. What has been written stays
as it is, so a stretch of names can be read, or written to a store, while more are added.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graph_stream.compiled import Int, compiled
from graph_stream.growable import widened
from graph_stream.ownership import mix64
from ingest import Names, column_of, parts_of

Bytes = npt.NDArray[np.uint8]
Longs = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_LEAST_BYTES = 1 << 16
_DIGEST_SEED = 0


class NameList:
    """Names by number, from 0.

    Attributes
    ----------
    bytes, bounds : ndarray
        The arena, uint8; and int64, where each name begins in it and the last one ends. Longer than what is in use.
    digest : int
        A 64-bit hash of all names in their order.
    """

    def __init__(self) -> None:
        self.bytes: Bytes = np.zeros(_LEAST_BYTES, np.uint8)
        self.bounds: Longs = np.zeros(_LEAST_BYTES // 8, np.int64)
        self.digest = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def reserve(self, names: int, size: int) -> None:
        """Make room for so many more names of so many bytes together; unused room takes no memory."""
        count, used = self._count, int(self.bounds[self._count])
        if count + names + 1 > len(self.bounds):
            self.bounds = widened(self.bounds, max(count + names + 1, 2 * len(self.bounds)))
        if used + size > len(self.bytes):
            self.bytes = widened(self.bytes, max(used + size, 2 * len(self.bytes)))

    def written(self, count: int) -> None:
        """Take in that names up to ``count`` have been written into the arrays."""
        self.digest = int(_folded(np.uint64(self.digest), self.bytes, self.bounds, self._count, count))
        self._count = count

    def extend(self, names: Names) -> None:
        """Add names behind the others; none of them may be there yet."""
        data, bounds = parts_of(names)
        size = int(bounds[-1] - bounds[0])
        self.reserve(len(names), size)
        count, used = self._count, int(self.bounds[self._count])
        self.bytes[used : used + size] = data[bounds[0] : bounds[-1]]
        self.bounds[count + 1 : count + 1 + len(names)] = bounds[1:] - bounds[0] + used
        self.written(count + len(names))

    def stretch(self, begin: int, end: int) -> Names:
        """Return the names with numbers from ``begin`` to before ``end``, as a view that stays as it is."""
        bounds = self.bounds[begin : end + 1]
        return column_of(self.bytes[: bounds[-1]], bounds)

    def take(self, numbers: Longs) -> Names:
        """Return the names with these numbers; raises IndexError where there is no such name."""
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= self._count):
            message = f"there are names 0 to {self._count - 1}, not {numbers.min()} to {numbers.max()}"
            raise IndexError(message)
        bounds = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(self.bounds[numbers + 1] - self.bounds[numbers], out=bounds[1:])
        data = np.empty(bounds[-1], np.uint8)
        _gather(self.bytes, self.bounds, np.require(numbers, np.int64, ["C", "W"]), data)
        return column_of(data, bounds)

    @property
    def nbytes(self) -> int:
        """The bytes in use."""
        return int(self.bounds[self._count]) + (self._count + 1) * self.bounds.itemsize


@compiled
def hash_of(data: Bytes, begin: Int, end: Int, seed: np.uint64) -> np.uint64:
    """Return a hash of a stretch of bytes; stored digests hang on it."""
    found = mix64(seed + np.uint64(end - begin))
    at = begin
    while at < end:
        word = np.uint64(0)
        stop = min(at + 8, end)
        for place in range(at, stop):
            word |= np.uint64(data[place]) << np.uint64(8 * (place - at))
        found = mix64(found ^ word)
        at = stop
    return found


@compiled
def _folded(digest: np.uint64, data: Bytes, bounds: Longs, begin: Int, end: Int) -> np.uint64:
    for number in range(begin, end):
        digest = mix64(digest ^ hash_of(data, bounds[number], bounds[number + 1], np.uint64(_DIGEST_SEED)))
    return digest


@compiled
def _gather(data: Bytes, bounds: Longs, numbers: Longs, out: Bytes) -> None:
    at = 0
    for i in range(len(numbers)):
        for place in range(bounds[numbers[i]], bounds[numbers[i] + 1]):
            out[at] = data[place]
            at += 1
