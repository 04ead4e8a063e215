"""Rows of snapshots put in order, and merged, in time that leaves the stream its processors.

Rows are in order if they go by virtual partition of the key, then key, then value. Sorting is a deal by virtual
partition, then a sort by bytes of each hand, which fits into a processor's cache. Merging goes through two ordered
sequences once.
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

SHORT_RUN = 16
"""Most rows that are sorted by insertion."""


class Rows(NamedTuple):
    """Rows of the snapshot layout; shape (n,) each. Each is about a subject: its key, or its key and value."""

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


def in_order(rows: Rows) -> Rows:
    """Return the rows in order; themselves where they are already. Equal ones stay as they were."""
    key, value = _flat(rows.key), _flat(rows.value)
    if _is_in_order(key, value):
        return rows
    starts = _bounds(key)
    position, hand_key, hand_value = (np.empty(len(key), np.int64) for _ in range(3))
    _deal(key, value, starts.copy(), position, hand_key, hand_value)
    order, scratch = np.arange(len(key)), np.empty(len(key), np.int64)
    _sort_hands(hand_key, hand_value, starts, order, scratch, np.empty(257, np.int64))
    time = rows.time[position[order]] if len(rows.time) else rows.time
    return Rows(rows.kind[position[order]], hand_key[order], hand_value[order], time)


def merged(older: Rows, newer: Rows, by_value: bool) -> Rows:
    """Merge rows that are in order; of two about one subject the newer stays.

    Parameters
    ----------
    older, newer : Rows
        In order, and no subject twice in either; both with times, or neither.
    by_value : bool
        Whether subjects are keys and values, rather than keys.
    """
    room = len(older.key) + len(newer.key)
    times = len(older.time) + len(newer.time)
    out = Rows(np.empty(room, np.int8), *(np.empty(length, np.int64) for length in (room, room, times)))
    count = _merge(*_flat_rows(older), *_flat_rows(newer), by_value, *out)
    return out.where(slice(count))


def dealt(parts: Sequence[Rows]) -> tuple[Rows, Longs]:
    """Join parts that are in order: by virtual partition, and in each part after part.

    Returns
    -------
    rows : Rows
        All rows.
    starts : ndarray of int64, shape (257,)
        Where each virtual partition starts in it, and at last the number of rows.
    """
    bounds = [_bounds(_flat(part.key)) for part in parts]
    starts = np.sum(bounds, axis=0)
    columns = []
    for each in zip(*parts, strict=True):
        column = np.empty(sum(len(source) for source in each), each[0].dtype)
        place = starts[:-1].copy()
        for source, bound in zip(each, bounds, strict=True):
            if not len(source):
                continue
            _copy_stretches(_flat(source), bound, column, place)
        columns.append(column)
    return Rows(*columns), starts


def warm_up() -> None:
    """Compile every kernel, or load it from numba's cache."""
    kind, value = np.zeros(2, np.int8), np.zeros(2, np.int64)
    # One of the two is out of order, whichever comes first.
    parts = [in_order(Rows(kind, np.array(keys, np.int64), value, NO_TIMES)) for keys in ((1, 2), (2, 1))]
    dealt([merged(parts[0], parts[1], by_value=True)])


def _flat(column: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    # One layout for all, so that each kernel is compiled once; what may not be written to is copied.
    return np.require(column, None, ["C", "W"])


def _flat_rows(rows: Rows) -> Rows:
    return Rows(_flat(rows.kind), _flat(rows.key), _flat(rows.value), _flat(rows.time))


@compiled
def _share(key: Int) -> Int:
    return np.int64(mix64(np.uint64(key)) & np.uint64(VIRTUAL_PARTITIONS - 1))


@compiled
def _count_shares(key: Longs, bounds: Longs) -> None:
    for i in range(len(key)):
        bounds[_share(key[i]) + 1] += 1
    for share in range(1, len(bounds)):
        bounds[share] += bounds[share - 1]


def _bounds(key: Longs) -> Longs:
    bounds = np.zeros(VIRTUAL_PARTITIONS + 1, np.int64)
    _count_shares(key, bounds)
    return bounds


@compiled
def _is_in_order(key: Longs, value: Longs) -> bool:
    share: Int = np.int64(0)
    for i in range(len(key)):
        before = share
        share = _share(key[i])
        if share < before:
            return False
        if i > 0 and share == before and (key[i] < key[i - 1] or (key[i] == key[i - 1] and value[i] < value[i - 1])):
            return False
    return True


# --- sorting ----------------------------------------------------------------------------------------------


@compiled
def _deal(key: Longs, value: Longs, filled: Longs, position: Longs, hand_key: Longs, hand_value: Longs) -> None:
    """Copy rows into a hand per virtual partition, in the order they come in, and note where each was.

    ``filled`` tells where each hand begins, and afterwards where it ends.
    """
    for i in range(len(key)):
        share = _share(key[i])
        place = filled[share]
        filled[share] = place + 1
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


# --- merging and joining ----------------------------------------------------------------------------------


@compiled
def _merge(
    kind: Kinds,
    key: Longs,
    value: Longs,
    time: Longs,
    newer_kind: Kinds,
    newer_key: Longs,
    newer_value: Longs,
    newer_time: Longs,
    by_value: bool,
    out_kind: Kinds,
    out_key: Longs,
    out_value: Longs,
    out_time: Longs,
) -> Int:
    """Write the merged rows and return how many there are."""
    timed = len(out_time) > 0
    end, newer_end = len(key), len(newer_key)
    i = np.int64(0)
    j = np.int64(0)
    count = np.int64(0)
    # Past its end a sequence has a share behind all others.
    share = _share(key[0]) if end > 0 else np.int64(VIRTUAL_PARTITIONS)
    newer_share = _share(newer_key[0]) if newer_end > 0 else np.int64(VIRTUAL_PARTITIONS)
    while i < end or j < newer_end:
        takes_newer = newer_share < share
        is_same = False
        if newer_share == share:
            takes_newer = newer_key[j] < key[i]
            if newer_key[j] == key[i]:
                is_same = not by_value or newer_value[j] == value[i]
                takes_newer = is_same or newer_value[j] < value[i]
        if takes_newer:
            out_kind[count] = newer_kind[j]
            out_key[count] = newer_key[j]
            out_value[count] = newer_value[j]
            if timed:
                out_time[count] = newer_time[j]
            j += 1
            newer_share = _share(newer_key[j]) if j < newer_end else np.int64(VIRTUAL_PARTITIONS)
        else:
            out_kind[count] = kind[i]
            out_key[count] = key[i]
            out_value[count] = value[i]
            if timed:
                out_time[count] = time[i]
        if is_same or not takes_newer:
            i += 1
            share = _share(key[i]) if i < end else np.int64(VIRTUAL_PARTITIONS)
        count += 1
    return count


@compiled
def _copy_stretches(source: npt.NDArray[Scalar], bounds: Longs, column: npt.NDArray[Scalar], place: Longs) -> None:
    """Copy each virtual partition's stretch to its place, and move that behind it."""
    for share in range(len(place)):
        for i in range(bounds[share], bounds[share + 1]):
            column[place[share]] = source[i]
            place[share] += 1
