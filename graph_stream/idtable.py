"""The table from external id to slot: open addressing in 256 shards that grow one at a time.

A shard holds the ids of one virtual partition. When it is half full its entries move to a stretch twice as long,
cut from one array or left behind by another shard; so no epoch pays for moving the whole table, and there is
never a second one beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream.compiled import Int, compiled
from graph_stream.growable import widened
from graph_stream.ownership import VIRTUAL_PARTITIONS, mix64

_FIRST_BITS = 3
"""Binary logarithm of a shard's first length."""
_STRETCH_SIZES = 32
_END, _LARGEST = _STRETCH_SIZES, _STRETCH_SIZES + 1
"""Places in ``free`` that hold how much of the array is cut, and the largest binary logarithm of a shard's length."""

# Columns of IdTable.shards.
START, BITS, LIVE_IDS = range(3)


class IdTable(NamedTuple):
    """Slots by external id; the ids themselves are kept per slot."""

    entries: npt.NDArray[np.int32]
    """Shape (capacity,): slots, -1 where a shard has none; between the shards, stretches they left."""
    shards: npt.NDArray[np.int64]
    """Shape (256, 3): where a shard starts in ``entries``, binary logarithm of its length, ids in it."""
    free: npt.NDArray[np.int64]
    """Shape (34,): per binary logarithm of a length, the first stretch left behind or -1, whose first entry is an
    eighth of the start of the next or -1; then how many entries are cut, and the largest such logarithm."""


def empty() -> IdTable:
    """Return a table without ids."""
    entries = VIRTUAL_PARTITIONS << _FIRST_BITS
    shards = np.zeros((VIRTUAL_PARTITIONS, 3), np.int64)
    shards[:, START] = np.arange(VIRTUAL_PARTITIONS) << _FIRST_BITS
    shards[:, BITS] = _FIRST_BITS
    free = np.full(_STRETCH_SIZES + 2, -1, np.int64)
    free[_END], free[_LARGEST] = entries, _FIRST_BITS
    table = IdTable(np.zeros(2 * entries, np.int32), shards, free)
    table.entries[:entries] = -1
    return table


def grow(table: IdTable) -> IdTable:
    """Return the table with twice the room for shards; the old one is not to be used afterwards."""
    return table._replace(entries=widened(table.entries, 2 * len(table.entries)))


def live_entries(table: IdTable) -> int:
    """Count the entries of all shards that hold a slot."""
    return sum(
        int(np.count_nonzero(table.entries[start : start + (1 << bits)] >= 0))
        for start, bits in table.shards[:, : BITS + 1].tolist()
    )


def nbytes(table: IdTable) -> int:
    """Return the bytes of the part in use."""
    return int(table.free[_END]) * table.entries.itemsize + table.shards.nbytes + table.free.nbytes


@compiled
def has_room(table: IdTable) -> bool:
    """Tell whether two more ids find room, whichever they are."""
    # Each of them may move the largest shard there is.
    return bool(table.free[_END] + (np.int64(4) << table.free[_LARGEST]) <= len(table.entries))


@compiled
def home_of(table: IdTable, vertex: Int) -> Int:
    """Return the place in ``entries`` that an external id is looked for at first."""
    mixed = mix64(np.uint64(vertex))
    shard = np.int64(mixed & np.uint64(VIRTUAL_PARTITIONS - 1))
    mask = (np.int64(1) << table.shards[shard, BITS]) - 1
    return np.int64(table.shards[shard, START] + (np.int64(mixed >> np.uint64(8)) & mask))


@compiled
def find(table: IdTable, ids: npt.NDArray[np.int64], vertex: Int) -> Int:
    """Return the slot of an external id, or -1."""
    mixed = mix64(np.uint64(vertex))
    shard = np.int64(mixed & np.uint64(VIRTUAL_PARTITIONS - 1))
    start = table.shards[shard, START]
    mask = (np.int64(1) << table.shards[shard, BITS]) - 1
    offset = np.int64(mixed >> np.uint64(8)) & mask
    while True:
        slot = table.entries[start + offset]
        if slot < 0 or ids[slot] == vertex:
            return np.int64(slot)
        offset = (offset + 1) & mask


@compiled
def add(table: IdTable, ids: npt.NDArray[np.int64], slot: Int) -> None:
    """Add the id of a slot, which is not in the table; there must be room (:func:`has_room`)."""
    mixed = mix64(np.uint64(ids[slot]))
    shard = np.int64(mixed & np.uint64(VIRTUAL_PARTITIONS - 1))
    if 2 * (table.shards[shard, LIVE_IDS] + 1) > (np.int64(1) << table.shards[shard, BITS]):
        _move(table, ids, shard)
    table.shards[shard, LIVE_IDS] += 1
    _put(table, shard, mixed, slot)


@compiled
def remove(table: IdTable, ids: npt.NDArray[np.int64], slot: Int) -> None:
    """Remove the id of a slot, which is in the table."""
    entries = table.entries
    mixed = mix64(np.uint64(ids[slot]))
    shard = np.int64(mixed & np.uint64(VIRTUAL_PARTITIONS - 1))
    start = table.shards[shard, START]
    mask = (np.int64(1) << table.shards[shard, BITS]) - 1
    hole = np.int64(mixed >> np.uint64(8)) & mask
    while entries[start + hole] != slot:
        hole = (hole + 1) & mask
    offset = hole
    while True:
        offset = (offset + 1) & mask
        other = entries[start + offset]
        if other < 0:
            break
        home = np.int64(mix64(np.uint64(ids[other])) >> np.uint64(8)) & mask
        if ((offset - home) & mask) >= ((offset - hole) & mask):
            entries[start + hole] = other
            hole = offset
    entries[start + hole] = -1
    table.shards[shard, LIVE_IDS] -= 1


@compiled
def _put(table: IdTable, shard: Int, mixed: np.uint64, slot: Int) -> None:
    start = table.shards[shard, START]
    mask = (np.int64(1) << table.shards[shard, BITS]) - 1
    offset = np.int64(mixed >> np.uint64(8)) & mask
    while table.entries[start + offset] >= 0:
        offset = (offset + 1) & mask
    table.entries[start + offset] = slot


@compiled
def _move(table: IdTable, ids: npt.NDArray[np.int64], shard: Int) -> None:
    """Move a shard to a stretch twice as long."""
    entries, free = table.entries, table.free
    old_start, old_bits = table.shards[shard, START], table.shards[shard, BITS]
    bits = old_bits + 1
    start = free[bits]
    if start >= 0:
        following = np.int64(entries[start])
        free[bits] = following << _FIRST_BITS if following >= 0 else -1
    else:
        start = free[_END]
        free[_END] = start + (np.int64(1) << bits)
    table.shards[shard, START] = start
    table.shards[shard, BITS] = bits
    free[_LARGEST] = max(free[_LARGEST], bits)
    for place in range(start, start + (np.int64(1) << bits)):
        entries[place] = -1
    for place in range(old_start, old_start + (np.int64(1) << old_bits)):
        slot = entries[place]
        if slot >= 0:
            _put(table, shard, mix64(np.uint64(ids[slot])), slot)
    # Stretches are multiples of the shortest, so an eighth of a start fits into an entry.
    head = free[old_bits]
    entries[old_start] = head >> _FIRST_BITS if head >= 0 else -1
    free[old_bits] = old_start
