"""Rows of snapshots put in order, and merged, in time that leaves the stream its processors.

Rows are in order if they go by virtual partition of the key, then class (edges, then the contributions of each
ranking), then key, then value. Sorting is a deal by virtual partition and class, then a sort by bytes of each hand,
which fits into a processor's cache. Merging goes through two ordered sequences once, virtual partition by virtual
partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream.adjacency import Longs
from graph_stream.compiled import Int, compiled
from graph_stream.growable import Scalar
from graph_stream.ownership import VIRTUAL_PARTITIONS, mix64

Kinds = npt.NDArray[np.int8]

SHORT_RUN = 48
"""Most rows that are sorted by insertion."""


class Rows(NamedTuple):
    """Rows of the snapshot layout; shape (n,) each.

    Each is about a subject: an edge (kind +1 or -1; its key and value), or a vertex (its key) in one of the rankings,
    which each have a kind of their own.
    """

    kind: Kinds
    key: Longs
    value: Longs
    time: Longs
    """Empty where rows have no times."""

    def where(self, chosen: slice | npt.NDArray[np.bool_] | Longs) -> Rows:
        """Return the rows that are chosen, by mask, by number in that order, or from the first to the last."""
        time = self.time[chosen] if len(self.time) else self.time
        return Rows(self.kind[chosen], self.key[chosen], self.value[chosen], time)


NO_TIMES = np.empty(0, np.int64)


class Ordered(NamedTuple):
    """Rows in order, and where each virtual partition starts in them.

    ``starts`` has shape (257,); its last entry is the number of rows.
    """

    rows: Rows
    starts: Longs

    def where(self, chosen: npt.NDArray[np.bool_]) -> Ordered:
        """Return the rows that a mask chooses."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return Ordered(self.rows.where(chosen), before[self.starts])


def ordered(rows: Rows) -> Ordered:
    """Put rows in order. Equal ones stay as they were."""
    kind, key, value, time = _flat_rows(rows)
    classes = max(int(kind.max(initial=0)), 1) + 1
    bounds = np.zeros(VIRTUAL_PARTITIONS * classes + 1, np.int64)
    _count_hands(kind, key, classes, bounds)
    position, hand_key, hand_value = (np.empty(len(key), np.int64) for _ in range(3))
    _deal(kind, key, value, classes, bounds.copy(), position, hand_key, hand_value)
    order, scratch = np.arange(len(key)), np.empty(len(key), np.int64)
    _sort_hands(hand_key, hand_value, bounds, order, scratch, np.empty(257, np.int64))
    origin = position[order]
    put = Rows(kind[origin], hand_key[order], hand_value[order], time[origin] if len(time) else time)
    return Ordered(put, bounds[::classes].copy())


def in_order(rows: Rows, starts: Longs) -> Ordered:
    """Return rows that lie by virtual partition as ``starts`` tells; in order, if they are not already."""
    if _is_in_order(_flat(rows.kind), _flat(rows.key), _flat(rows.value), starts):
        return Ordered(rows, starts)
    return ordered(rows)


def merged(parts: Sequence[Ordered]) -> Ordered:
    """Merge rows, oldest first; of several about one subject the newest stays.

    Parameters
    ----------
    parts : sequence of Ordered
        At least one; no subject twice in any; all with times, or none.
    """
    remaining = list(parts)
    while len(remaining) > 1:
        # The two neighbours that are shortest together, so that few rows are moved often.
        sizes = [int(part.starts[-1]) for part in remaining]
        at = min(range(len(remaining) - 1), key=lambda at: sizes[at] + sizes[at + 1])
        remaining[at : at + 2] = [_merged(remaining[at], remaining[at + 1])]
    return remaining[0]


def _merged(older: Ordered, newer: Ordered) -> Ordered:
    room = len(older.rows.key) + len(newer.rows.key)
    times = len(older.rows.time) + len(newer.rows.time)
    out = Rows(np.empty(room, np.int8), *(np.empty(length, np.int64) for length in (room, room, times)))
    starts = np.empty(VIRTUAL_PARTITIONS + 1, np.int64)
    count = _merge(
        *_flat_rows(older.rows), _flat(older.starts), *_flat_rows(newer.rows), _flat(newer.starts), *out, starts
    )
    return Ordered(out.where(slice(count)), starts)


def warm_up() -> None:
    """Compile every kernel, or load it from numba's cache."""
    kind, value = np.array([1, 0], np.int8), np.zeros(2, np.int64)
    rows = Rows(kind, np.array([1, 2], np.int64), value, NO_TIMES)
    merged([in_order(*ordered(rows)), ordered(rows)])


def _flat(column: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    # One layout for all, so that each kernel is compiled once; what may not be written to is copied.
    return np.require(column, None, ["C", "W"])


def _flat_rows(rows: Rows) -> Rows:
    return Rows(_flat(rows.kind), _flat(rows.key), _flat(rows.value), _flat(rows.time))


@compiled
def _class(kind: Int) -> Int:
    """Return the place of a kind among the classes: an edge's sign is not part of what the row is about."""
    if kind == 0:
        return np.int64(1)
    return np.int64(0) if kind < 2 else np.int64(kind)


# --- sorting ----------------------------------------------------------------------------------------------


@compiled
def _hand(kind: Int, key: Int, classes: Int) -> Int:
    share = np.int64(mix64(np.uint64(key)) & np.uint64(VIRTUAL_PARTITIONS - 1))
    return share * classes + _class(kind)


@compiled
def _count_hands(kind: Kinds, key: Longs, classes: Int, bounds: Longs) -> None:
    for i in range(len(key)):
        bounds[_hand(kind[i], key[i], classes) + 1] += 1
    for hand in range(1, len(bounds)):
        bounds[hand] += bounds[hand - 1]


@compiled
def _deal(
    kind: Kinds,
    key: Longs,
    value: Longs,
    classes: Int,
    filled: Longs,
    position: Longs,
    hand_key: Longs,
    hand_value: Longs,
) -> None:
    """Copy rows into hands, in the order they come in, and note where each was.

    ``filled`` tells where each hand begins, and afterwards where it ends.
    """
    for i in range(len(key)):
        hand = _hand(kind[i], key[i], classes)
        place = filled[hand]
        filled[hand] = place + 1
        position[place] = i
        hand_key[place] = key[i]
        hand_value[place] = value[i]


@compiled
def _sort_hands(key: Longs, value: Longs, starts: Longs, order: Longs, scratch: Longs, counts: Longs) -> None:
    """Sort the positions in ``order``, hand by hand."""
    for share in range(len(starts) - 1):
        begin, end = starts[share], starts[share + 1]
        _sort(key, order, begin, end, scratch, counts)
        first = begin
        while first < end:
            last = first + 1
            while last < end and key[order[last]] == key[order[first]]:
                last += 1
            _sort(value, order, first, last, scratch, counts)
            first = last


@compiled
def _sort(column: Longs, order: Longs, begin: Int, end: Int, scratch: Longs, counts: Longs) -> None:
    """Sort positions by what a column has there: few by insertion, many byte by byte (least significant first).

    Equal ones stay as they were. Bytes that all have in common, as most of small numbers are, cost nothing.
    """
    if end - begin <= SHORT_RUN:
        for i in range(begin + 1, end):
            row = order[i]
            place = i
            while place > begin and column[order[place - 1]] > column[row]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = row
        return
    differing = np.int64(0)
    for i in range(begin + 1, end):
        differing |= column[order[i]] ^ column[order[begin]]
    for shift in range(0, 64, 8):
        if (differing >> shift) & 0xFF == 0:
            continue
        # The most significant bit is the sign: negative numbers come first.
        flip = 0x80 if shift == 56 else 0
        counts[:] = 0
        for i in range(begin, end):
            counts[(((column[order[i]] >> shift) & 0xFF) ^ flip) + 1] += 1
        for digit in range(1, len(counts)):
            counts[digit] += counts[digit - 1]
        for i in range(begin, end):
            digit = ((column[order[i]] >> shift) & 0xFF) ^ flip
            scratch[begin + counts[digit]] = order[i]
            counts[digit] += 1
        for i in range(begin, end):
            order[i] = scratch[i]


@compiled
def _compare(kind: Int, key: Int, value: Int, other_kind: Int, other_key: Int, other_value: Int) -> Int:
    """Return whether a row's subject comes before another's (below 0), is the same (0), or comes after it.

    Both are of one virtual partition.
    """
    of, other_of = _class(kind), _class(other_kind)
    if of != other_of:
        return np.int64(-1) if of < other_of else np.int64(1)
    if key != other_key:
        return np.int64(-1) if key < other_key else np.int64(1)
    if of > 0 or value == other_value:
        return np.int64(0)
    return np.int64(-1) if value < other_value else np.int64(1)


@compiled
def _is_in_order(kind: Kinds, key: Longs, value: Longs, starts: Longs) -> bool:
    for share in range(len(starts) - 1):
        for i in range(starts[share] + 1, starts[share + 1]):
            if _compare(kind[i - 1], key[i - 1], value[i - 1], kind[i], key[i], value[i]) > 0:
                return False
    return True


# --- merging ----------------------------------------------------------------------------------------------


@compiled
def _merge(
    kind: Kinds,
    key: Longs,
    value: Longs,
    time: Longs,
    starts: Longs,
    newer_kind: Kinds,
    newer_key: Longs,
    newer_value: Longs,
    newer_time: Longs,
    newer_starts: Longs,
    out_kind: Kinds,
    out_key: Longs,
    out_value: Longs,
    out_time: Longs,
    out_starts: Longs,
) -> Int:
    """Write the merged rows and where their virtual partitions start; return how many there are."""
    timed = len(out_time) > 0
    count: Int = np.int64(0)
    for share in range(len(starts) - 1):
        out_starts[share] = count
        i, end = starts[share], starts[share + 1]
        j, newer_end = newer_starts[share], newer_starts[share + 1]
        while i < end and j < newer_end:
            # Which of two rows comes first is anybody's guess, so nothing here depends on it that a processor would
            # have to guess: no branch.
            of, newer_of = _class(kind[i]), _class(newer_kind[j])
            detail = value[i] if of == 0 else np.int64(0)
            newer_detail = newer_value[j] if newer_of == 0 else np.int64(0)
            of_one_class, of_one_key = of == newer_of, key[i] == newer_key[j]
            is_same = of_one_class & of_one_key & (detail == newer_detail)
            is_later = of_one_class & ((newer_key[j] < key[i]) | (of_one_key & (newer_detail < detail)))
            takes_newer = is_same | (newer_of < of) | is_later
            out_kind[count] = newer_kind[j] if takes_newer else kind[i]
            out_key[count] = newer_key[j] if takes_newer else key[i]
            out_value[count] = newer_value[j] if takes_newer else value[i]
            if timed:
                out_time[count] = newer_time[j] if takes_newer else time[i]
            i += 0 if takes_newer and not is_same else 1
            j += 1 if takes_newer else 0
            count += 1
        count = _copy(kind, key, value, time, i, end, out_kind, out_key, out_value, out_time, count)
        count = _copy(
            newer_kind, newer_key, newer_value, newer_time, j, newer_end, out_kind, out_key, out_value, out_time, count
        )
    out_starts[len(starts) - 1] = count
    return count


@compiled
def _copy(
    kind: Kinds,
    key: Longs,
    value: Longs,
    time: Longs,
    first: Int,
    end: Int,
    out_kind: Kinds,
    out_key: Longs,
    out_value: Longs,
    out_time: Longs,
    count: Int,
) -> Int:
    """Copy rows behind the ``count`` that there are; return how many there are then."""
    for i in range(first, end):
        out_kind[count] = kind[i]
        out_key[count] = key[i]
        out_value[count] = value[i]
        if len(out_time) > 0:
            out_time[count] = time[i]
        count += 1
    return count
