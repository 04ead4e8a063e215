"""Deletes that are remembered, so that an older insert that comes later does not bring the edge back.

A table of pairs by external id, for the vertices need not exist, each with the time of its delete; and a wheel that
finds those past the horizon.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream.adjacency import Longs
from graph_stream.compiled import Int, compiled
from graph_stream.growable import widened
from graph_stream.ownership import mix64
from graph_stream.statehash import Lanes, tombstone_lanes
from graph_stream.wheel import Wheel, file, is_filed, no_wheel, unfile, wheel_for
from graph_stream.wheel import fitted as fitted_wheel
from graph_stream.wheel import nbytes as nbytes_of_wheel

# Places in Tombstones.counters.
_USED, _FREE_HEAD, LIVE = range(3)
_LEAST_ROOM = 64


class Tombstones(NamedTuple):
    """The pairs; arrays by entry of shape (capacity,), and the time of each is when it is due in the wheel."""

    src: Longs
    """External id of the follower; of a free entry, the next free one or -1."""
    dst: Longs
    table: npt.NDArray[np.int32]
    """Entries by pair: open addressing, -1 where empty; a power of two, at most half full."""
    wheel: Wheel
    counters: npt.NDArray[np.int64]
    """Entries ever used, first free one or -1, tombstones there are."""


def no_tombstones(span: int | None) -> Tombstones:
    """Return a table without any; ``span`` is how long one lasts, about; None if there will be none."""
    none = np.empty(0, np.int64)
    due = no_wheel() if span is None else wheel_for(span)
    counters = np.array([0, -1, 0], np.int64)
    return Tombstones(none, none, np.full(1, -1, np.int32), due, counters)


def fitted(tombstones: Tombstones, more: int) -> Tombstones:
    """Return the table with room for so many more; the old one is not to be used afterwards."""
    least = int(tombstones.counters[LIVE]) + more
    if least <= len(tombstones.src):
        return tombstones
    room = 1 << max(least, _LEAST_ROOM).bit_length()
    made = Tombstones(
        widened(tombstones.src, room),
        widened(tombstones.dst, room),
        np.full(2 * room, -1, np.int32),
        fitted_wheel(tombstones.wheel, room),
        tombstones.counters,
    )
    _index(made)
    return made


def nbytes(tombstones: Tombstones) -> int:
    """Return the bytes in use."""
    used = int(tombstones.counters[_USED])
    per_entry = tombstones.src.itemsize + tombstones.dst.itemsize
    return used * per_entry + tombstones.table.nbytes + nbytes_of_wheel(tombstones.wheel, used)


@compiled
def _index(tombstones: Tombstones) -> None:
    for entry in range(tombstones.counters[_USED]):
        if is_filed(tombstones.wheel, entry):
            place = _home(tombstones, tombstones.src[entry], tombstones.dst[entry])
            while tombstones.table[place] >= 0:
                place = (place + 1) & (len(tombstones.table) - 1)
            tombstones.table[place] = entry


@compiled
def _home(tombstones: Tombstones, src: Int, dst: Int) -> Int:
    mixed = mix64(mix64(np.uint64(src)) + np.uint64(dst))
    return np.int64((mixed >> np.uint64(8)) & np.uint64(len(tombstones.table) - 1))


@compiled
def find(tombstones: Tombstones, src: Int, dst: Int) -> Int:
    """Return the entry of a pair, or -1."""
    if tombstones.counters[LIVE] == 0:
        return -1
    place = _home(tombstones, src, dst)
    while True:
        entry = np.int64(tombstones.table[place])
        if entry < 0 or (tombstones.src[entry] == src and tombstones.dst[entry] == dst):
            return entry
        place = (place + 1) & (len(tombstones.table) - 1)


@compiled
def put(tombstones: Tombstones, src: Int, dst: Int, time: Int, lanes: Lanes) -> None:
    """Add a pair that is not there; there must be room. The lane sums are brought up to date, here and below."""
    counters = tombstones.counters
    entry = counters[_FREE_HEAD]
    if entry >= 0:
        counters[_FREE_HEAD] = tombstones.src[entry]
    else:
        entry = counters[_USED]
        counters[_USED] += 1
    counters[LIVE] += 1
    tombstones.src[entry] = src
    tombstones.dst[entry] = dst
    place = _home(tombstones, src, dst)
    while tombstones.table[place] >= 0:
        place = (place + 1) & (len(tombstones.table) - 1)
    tombstones.table[place] = entry
    file(tombstones.wheel, entry, time)
    low, high = tombstone_lanes(src, dst, time)
    lanes[0] += low
    lanes[1] += high


@compiled
def drop(tombstones: Tombstones, entry: Int, lanes: Lanes) -> None:
    """Take out an entry that is there."""
    low, high = tombstone_lanes(tombstones.src[entry], tombstones.dst[entry], tombstones.wheel.due[entry])
    lanes[0] -= low
    lanes[1] -= high
    unfile(tombstones.wheel, entry)
    table = tombstones.table
    mask = len(table) - 1
    place = _home(tombstones, tombstones.src[entry], tombstones.dst[entry])
    while table[place] != entry:
        place = (place + 1) & mask
    following = place
    while True:
        following = (following + 1) & mask
        other = table[following]
        if other < 0:
            break
        home = _home(tombstones, tombstones.src[other], tombstones.dst[other])
        if ((following - home) & mask) >= ((following - place) & mask):
            table[place] = other
            place = following
    table[place] = -1
    tombstones.src[entry] = tombstones.counters[_FREE_HEAD]
    tombstones.counters[_FREE_HEAD] = entry
    tombstones.counters[LIVE] -= 1


@compiled
def forget(tombstones: Tombstones, horizon: Int, first: Int, chains: Int, lanes: Lanes, src: Longs, dst: Longs) -> Int:
    """Drop those older than the horizon, write their pairs, for which there must be room, and return how many.

    ``first`` and ``chains`` tell where they can be (:func:`graph_stream.wheel.sweep_of`).
    """
    count = 0
    for chain in range(chains):
        entry = np.int64(tombstones.wheel.heads[(first + chain) & (len(tombstones.wheel.heads) - 1)])
        while entry >= 0:
            following = np.int64(tombstones.wheel.following[entry])
            if tombstones.wheel.due[entry] < horizon:
                src[count] = tombstones.src[entry]
                dst[count] = tombstones.dst[entry]
                count += 1
                drop(tombstones, entry, lanes)
            entry = following
    return count


@compiled
def list_all(tombstones: Tombstones, src: Longs, dst: Longs, time: Longs) -> Int:
    """Write pair and time of every tombstone, for which there must be room, and return how many."""
    count = 0
    for entry in range(tombstones.counters[_USED]):
        if is_filed(tombstones.wheel, entry):
            src[count] = tombstones.src[entry]
            dst[count] = tombstones.dst[entry]
            time[count] = tombstones.wheel.due[entry]
            count += 1
    return count
