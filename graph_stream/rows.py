"""The edges: one row of followed slots per vertex, cut from one arena.

A row of up to 8 entries is a dense list; a longer one is an open-addressing set (linear probing, no
tombstones), so adding, finding and removing an edge takes a few probes also at a hub, for 4 bytes an edge at
a load of 7/16 to 7/8. Rows are powers of two long; freed rows are chained by size. Where edges have times, these
move with them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graph_stream import idtable
from graph_stream.adjacency import (
    ARENA,
    DEGREES,
    EDGES,
    IDS,
    LIVE,
    MAX_DEGREE,
    NOTHING,
    ROWS,
    SLOTS,
    USED,
    Longs,
    Slots,
    Storage,
    Vertices,
)
from graph_stream.compiled import Int, compiled

DENSE_BITS = 3
"""Rows of at most ``2**DENSE_BITS`` entries are dense lists."""
_SPREAD = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


@compiled
def row_end(vertices: Vertices, slot: Int) -> Int:
    """Return where the part of the row that may hold entries ends in the arena; it may hold -1 in between."""
    bits = vertices.row_bits[slot]
    if bits <= DENSE_BITS:
        return np.int64(vertices.row[slot] + vertices.degree[slot])
    return np.int64(vertices.row[slot] + (np.int64(1) << bits))


@compiled
def _row_home(followed: Int, bits: Int) -> Int:
    return np.int64((np.uint64(followed) * np.uint64(_SPREAD)) >> np.uint64(64 - bits))


@compiled
def row_home(vertices: Vertices, follower: Int, followed: Int) -> Int:
    """Return the place of the arena that an edge between two slots is looked for at first."""
    bits: Int = np.int64(vertices.row_bits[follower])
    offset = _row_home(followed, max(bits, 1))
    place: Int = max(vertices.row[follower] + (offset if bits > DENSE_BITS else 0), 0)
    return place


@compiled
def row_place(vertices: Vertices, storage: Storage, follower: Int, followed: Int) -> Int:
    """Return where the arena holds the edge between two slots, or -1."""
    bits = vertices.row_bits[follower]
    start = vertices.row[follower]
    if bits <= DENSE_BITS:
        for place in range(start, start + vertices.degree[follower]):
            if storage.arena[place] == followed:
                return place
        return -1
    mask = (np.int64(1) << bits) - 1
    offset = _row_home(followed, bits)
    while True:
        entry = storage.arena[start + offset]
        if entry == followed:
            return np.int64(start + offset)
        if entry < 0:
            return -1
        offset = (offset + 1) & mask


@compiled
def _row_full(degree: Int, bits: Int) -> bool:
    if bits <= DENSE_BITS:
        return bool(bits == 0 or degree >= (1 << bits))
    return bool(8 * np.int64(degree) >= 7 * (np.int64(1) << bits))


@compiled
def _row_bits_for(degree: Int) -> Int:
    # Asked for powers of two only, this gives a row that is half full.
    bits = np.int64(1)
    while _row_full(degree, bits):
        bits += 1
    return bits


@compiled
def _can_cut(storage: Storage, bits: Int) -> bool:
    end = storage.counters[ARENA] + (np.int64(1) << bits)
    return bool(storage.free_rows[bits] >= 0 or end <= len(storage.arena))


@compiled
def shortage_of(vertices: Vertices, storage: Storage, follower: Int) -> int:
    """Return what lacks room for one more edge from ``follower`` (a slot, or -1) and two new vertices.

    Returns
    -------
    int
        ``NOTHING``, ``SLOTS``, ``IDS``, ``ROWS`` or ``DEGREES``; pass it to :func:`grow`.
    """
    if storage.counters[LIVE] + 2 > len(vertices.id):
        return SLOTS
    if not idtable.has_room(storage.table):
        return IDS
    bits = np.int64(1)
    if follower >= 0:
        degree = vertices.degree[follower]
        if degree + 2 > len(storage.degrees):
            return DEGREES
        bits = np.int64(vertices.row_bits[follower])
        if not _row_full(degree, bits):
            return NOTHING
        bits += 1
    return NOTHING if _can_cut(storage, bits) else ROWS


@compiled
def _free_row(storage: Storage, start: Int, bits: Int) -> None:
    head = storage.free_rows[bits]
    storage.arena[start] = head >> 1 if head >= 0 else -1
    storage.free_rows[bits] = start


@compiled
def _move_row(vertices: Vertices, storage: Storage, slot: Int, bits: Int) -> None:
    old_bits = np.int64(vertices.row_bits[slot])
    old_start = vertices.row[slot]
    old_end = row_end(vertices, slot)
    arena = storage.arena
    start = storage.free_rows[bits]
    if start >= 0:
        following = np.int64(arena[start])
        storage.free_rows[bits] = following << 1 if following >= 0 else -1
    else:
        start = storage.counters[ARENA]
        storage.counters[ARENA] += np.int64(1) << bits
    vertices.row[slot] = start
    vertices.row_bits[slot] = bits
    if bits > DENSE_BITS:
        for place in range(start, start + (np.int64(1) << bits)):
            arena[place] = -1
    filled = np.int64(0)
    for place in range(old_start, old_end if old_bits else old_start):
        entry = arena[place]
        if entry >= 0:
            moved = _put(arena, start, bits, filled, entry)
            filled += 1
            if len(storage.times) > 0:
                storage.times[moved] = storage.times[place]
    if old_bits:
        _free_row(storage, old_start, old_bits)


@compiled
def cut_row(vertices: Vertices, storage: Storage, slot: Int, degree: Int) -> bool:
    """Give a vertex without edges a row for so many; return whether there was room."""
    bits = _row_bits_for(degree - 1)
    if not _can_cut(storage, bits):
        return False
    _move_row(vertices, storage, slot, bits)
    return True


@compiled
def _put(arena: npt.NDArray[np.int32], start: Int, bits: Int, filled: Int, followed: Int) -> Int:
    if bits <= DENSE_BITS:
        arena[start + filled] = followed
        return np.int64(start + filled)
    mask = (np.int64(1) << bits) - 1
    offset = _row_home(followed, bits)
    while arena[start + offset] >= 0:
        offset = (offset + 1) & mask
    arena[start + offset] = followed
    return np.int64(start + offset)


@compiled
def connect(vertices: Vertices, storage: Storage, follower: Int, followed: Int) -> Int:
    """Add an absent edge between two slots, for which there must be room (:func:`shortage_of`); return its place."""
    degree = np.int64(vertices.degree[follower])
    bits = np.int64(vertices.row_bits[follower])
    if _row_full(degree, bits):
        bits += 1
        _move_row(vertices, storage, follower, bits)
    place = _put(storage.arena, vertices.row[follower], bits, degree, followed)
    vertices.degree[follower] = degree + 1
    vertices.followers[followed] += 1
    storage.degrees[degree] -= 1
    storage.degrees[degree + 1] += 1
    storage.counters[EDGES] += 1
    storage.counters[MAX_DEGREE] = max(storage.counters[MAX_DEGREE], degree + 1)
    return place


@compiled
def disconnect(vertices: Vertices, storage: Storage, follower: Int, followed: Int, place: Int) -> None:
    """Remove the edge between two slots that :func:`row_place` found at ``place``."""
    arena = storage.arena
    times = storage.times
    degree = np.int64(vertices.degree[follower]) - 1
    bits = np.int64(vertices.row_bits[follower])
    start = vertices.row[follower]
    if bits <= DENSE_BITS:
        arena[place] = arena[start + degree]
        if len(times) > 0:
            times[place] = times[start + degree]
    else:
        mask = (np.int64(1) << bits) - 1
        hole = place - start
        offset = hole
        while True:
            offset = (offset + 1) & mask
            entry = arena[start + offset]
            if entry < 0:
                break
            if ((offset - _row_home(entry, bits)) & mask) >= ((offset - hole) & mask):
                arena[start + hole] = entry
                if len(times) > 0:
                    times[start + hole] = times[start + offset]
                hole = offset
        arena[start + hole] = -1
    vertices.degree[follower] = degree
    vertices.followers[followed] -= 1
    storage.degrees[degree + 1] -= 1
    storage.degrees[degree] += 1
    storage.counters[EDGES] -= 1
    if storage.degrees[storage.counters[MAX_DEGREE]] == 0:
        storage.counters[MAX_DEGREE] = degree
    if degree == 0:
        _free_row(storage, start, bits)
        vertices.row_bits[follower] = 0
    elif 8 * degree <= (np.int64(1) << bits):
        # A row that emptied out would still be walked in full at every emission.
        smaller = _row_bits_for(degree)
        if smaller < bits and _can_cut(storage, smaller):
            _move_row(vertices, storage, follower, smaller)


@compiled
def edges(vertices: Vertices, storage: Storage, follower: Slots, followed: Slots, time: Longs) -> Int:
    """Write the slots of all edges and their times, as far as there is room, by follower; return how many there are."""
    count = 0
    for slot in range(storage.counters[USED]):
        if vertices.degree[slot] > 0:
            for place in range(vertices.row[slot], row_end(vertices, slot)):
                if storage.arena[place] >= 0:
                    if count < len(follower):
                        follower[count] = slot
                        followed[count] = storage.arena[place]
                    if count < len(time):
                        time[count] = storage.times[place]
                    count += 1
    return count
