"""From names to their numbers: who comes first gets the next one.

Open addressing over 8-byte entries: half of each is the number, half a hash of the name, so that a probe looks at a
name's bytes only where nearly certainly they are the right ones, and a longer table is filled without looking at
any. The hash is seeded anew in each process, for names come from outside and nobody is to choose ones that collide;
numbers do not depend on it, but on the order of the names alone.
"""

from __future__ import annotations

import os
import threading

import numpy as np
import numpy.typing as npt

from graph_stream.compiled import Int, compiled
from graph_stream.growable import widened
from graph_stream.namelist import Bytes, Longs, NameList, Words, hash_of
from ingest import Names, column_of, parts_of

MOST_NAMES = 2**32 - 2
_FIRST_LENGTH = 1 << 10
_AT_ONCE = 1 << 16
"""Names that are hashed and looked up together, at most."""
UNKNOWN = -1
"""The number of a name that is not there."""


class NameTable:
    """The dictionary of a run with an index; one thread may look names up while another adds some.

    Attributes
    ----------
    names : NameList
        The names by number.
    """

    def __init__(self) -> None:
        self.names = NameList()
        self._entries = _empty(_FIRST_LENGTH)
        self._seed = np.uint64(int.from_bytes(os.urandom(8)))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def number(self, *columns: Names) -> list[Longs]:
        """Return the number of each name, and give the next ones to names that are new.

        Parameters
        ----------
        *columns : column of n names
            One or two. New names are numbered row by row, in a row by column.

        Returns
        -------
        list of ndarray of int64, shape (n,)
            One for each column.

        Raises
        ------
        OverflowError
            When there are more than `MOST_NAMES`.
        """
        return self._looked_up(columns, adds=True)

    def find(self, *columns: Names) -> list[Longs]:
        """Return the number of each name, `UNKNOWN` of those that have none; as `number`, but nothing is added."""
        return self._looked_up(columns, adds=False)

    def extend(self, names: Names) -> bool:
        """Add names behind the others; tell whether all of them were new, as they have to be."""
        first = len(self)
        (numbers,) = self.number(names)
        return np.array_equal(numbers, np.arange(first, first + len(names)))

    @property
    def nbytes(self) -> int:
        """The bytes in use."""
        return self.names.nbytes + self._entries.nbytes

    def _looked_up(self, columns: tuple[Names, ...], *, adds: bool) -> list[Longs]:
        found = [np.empty(len(columns[0]), np.int64) for _ in columns]
        rows = _AT_ONCE // len(columns)
        for begin in range(0, len(columns[0]), rows):
            chunk = [parts_of(column[begin : begin + rows]) for column in columns]
            with self._lock:
                numbers = self._look_up(chunk, adds=adds)
            for column, into in zip(numbers, found, strict=True):
                into[begin : begin + rows] = column
        return found

    def _look_up(self, columns: list[tuple[Bytes, Longs]], *, adds: bool) -> npt.NDArray[np.int64]:
        rows = len(columns[0][1]) - 1
        hashes = np.empty((len(columns), rows), np.uint64)
        for (data, bounds), into in zip(columns, hashes, strict=True):
            hash_names(data, bounds, self._seed, into)
        if adds:
            size = sum(int(bounds[-1] - bounds[0]) for _, bounds in columns)
            self.names.reserve(len(columns) * rows, size)
        numbers = np.empty((len(columns), rows), np.int64)
        count = np.array([len(self)], np.int64)
        first, last = columns[0], columns[-1]
        known = self.names
        done: Int = 0
        while True:
            done = _look_up(*first, *last, hashes, done, known.bytes, known.bounds, self._entries, count, adds, numbers)
            if done == numbers.size:
                break
            self._grow()
        if adds:
            known.written(int(count[0]))
        return numbers

    def _grow(self) -> None:
        """Go on with twice the entries: the bytes of names are not looked at."""
        if 2 * len(self._entries) > MOST_NAMES + 2:
            message = f"a run can tell {3 * len(self._entries) // 4} names apart, and there are more"
            raise OverflowError(message)
        longer = _empty(2 * len(self._entries))
        _refill(self._entries, longer)
        self._entries = longer


def warm_up() -> None:
    """Compile what looks names up."""
    names = column_of(np.zeros(1, np.uint8), np.array([0, 1]))
    table = NameTable()
    table.number(names, names)
    table.number(names)
    table.names.take(np.zeros(1, np.int64))
    _refill(table._entries, _empty(2 * len(table._entries)))


def _empty(length: int) -> Words:
    return widened(np.zeros(0, np.uint64), length)


def hash_names(data: Bytes, bounds: Longs, seed: np.uint64, hashes: Words) -> None:
    """Write the hash of each name of a column."""
    _hash_names(data, bounds, seed, hashes)


@compiled
def _hash_names(data: Bytes, bounds: Longs, seed: np.uint64, hashes: Words) -> None:
    for i in range(len(hashes)):
        hashes[i] = hash_of(data, bounds[i], bounds[i + 1], seed)


@compiled
def _look_up(
    src_bytes: Bytes,
    src_bounds: Longs,
    dst_bytes: Bytes,
    dst_bounds: Longs,
    hashes: Words,
    begin: Int,
    names: Bytes,
    bounds: Longs,
    entries: Words,
    count: Longs,
    adds: bool,
    numbers: Longs,
) -> Int:
    """Look names up, row by row from the one at place ``begin``; return the place where the table is full.

    ``names`` and ``bounds`` must have room for all.
    """
    columns = hashes.shape[0]
    mask = np.uint64(len(entries) - 1)
    most = np.int64(len(entries)) * 3 // 4
    for at in range(begin, hashes.size):
        row, column = at // columns, at % columns
        data = src_bytes if column == 0 else dst_bytes
        first = src_bounds[row] if column == 0 else dst_bounds[row]
        last = src_bounds[row + 1] if column == 0 else dst_bounds[row + 1]
        tag = hashes[column, row] >> np.uint64(32)
        place = tag & mask
        found = np.int64(UNKNOWN)
        while entries[place] != 0:
            if entries[place] >> np.uint64(32) == tag:
                number = np.int64(entries[place] & np.uint64(0xFFFFFFFF)) - 1
                if _is_same(names, bounds[number], bounds[number + 1], data, first, last):
                    found = number
                    break
            place = (place + np.uint64(1)) & mask
        if found == UNKNOWN and adds:
            if count[0] >= most:
                return at
            found = count[0]
            end = bounds[found]
            for position in range(first, last):
                names[end] = data[position]
                end += 1
            bounds[found + 1] = end
            entries[place] = (tag << np.uint64(32)) | np.uint64(found + 1)
            count[0] += 1
        numbers[column, row] = found
    return np.int64(hashes.size)


@compiled
def _is_same(names: Bytes, begin: Int, end: Int, data: Bytes, first: Int, last: Int) -> bool:
    if end - begin != last - first:
        return False
    at = first
    while at < last and names[begin + at - first] == data[at]:
        at += 1
    return at == last


@compiled
def _refill(entries: Words, longer: Words) -> None:
    mask = np.uint64(len(longer) - 1)
    for i in range(len(entries)):
        if entries[i] != 0:
            place = (entries[i] >> np.uint64(32)) & mask
            while longer[place] != 0:
                place = (place + np.uint64(1)) & mask
            longer[place] = entries[i]
