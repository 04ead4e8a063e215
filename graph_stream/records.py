"""How the records of an epoch change the graph.

Only the net change of an edge counts: of several records of one edge in an epoch the last decides, and it
changes something only if the edge was not already as it says (design, section 5). A vertex exists while it
has an edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream import adjacency
from graph_stream.adjacency import (
    EDGES,
    NOTHING,
    USED,
    Longs,
    Slots,
    Storage,
    Vertices,
    add,
    find,
    remove,
)
from graph_stream.compiled import Int, compiled
from graph_stream.ownership import VIRTUAL_PARTITIONS, member_of, mix64
from graph_stream.rows import connect, disconnect, edges, row_place, shortage_of
from graph_stream.statehash import Lanes, edge_lanes

BLOCK_RECORDS = 1024
"""Records that are looked up together: enough to wait for much of memory at once, few enough to stay in cache."""


class UnknownVertex(LookupError):
    """A vertex that was to be looked up has no edge at this member."""


def check_records(src: Longs, dst: Longs, op: npt.NDArray[np.int8]) -> None:
    """Refuse columns that are no records.

    Raises
    ------
    ValueError
        If types or shapes are wrong, or an operation is neither +1 nor -1; the text names the first such
        record.
    """
    if not (src.dtype == dst.dtype == np.int64 and op.dtype == np.int8):
        message = f"records must be int64, int64 and int8, not {src.dtype}, {dst.dtype} and {op.dtype}"
        raise ValueError(message)
    if not (src.ndim == dst.ndim == op.ndim == 1 and len(src) == len(dst) == len(op)):
        message = f"records must be three columns of one length, not {src.shape}, {dst.shape}, {op.shape}"
        raise ValueError(message)
    wrong = np.flatnonzero((op != 1) & (op != -1))
    if len(wrong):
        message = f"operation of record {wrong[0]} is {op[wrong[0]]}; it must be +1 or -1"
        raise ValueError(message)


@compiled
def select(src: Longs, dst: Longs, index: Int, partitions: Int, table: Slots, last: Longs) -> tuple[int, int, int]:
    """Find, among one member's records, the last one of each distinct edge.

    Parameters
    ----------
    src, dst : ndarray of int64, shape (n,)
        Followers and followed of the whole epoch, in order.
    index, partitions : int
        The member, and how many there are.
    table : ndarray of int32, shape (a power of two, at least 2n)
        Scratch, all -1.
    last : ndarray of int64, shape (n,)
        Receives, per distinct edge in order of first appearance, the position of its last record.

    Returns
    -------
    records, self_loops, distinct : int
        Records of followers the member owns; self-loops among them; distinct edges among the others.
    """
    mask = len(table) - 1
    records = 0
    self_loops = 0
    distinct = 0
    for i in range(len(src)):
        mixed = mix64(np.uint64(src[i]))
        share_of_256 = np.int64(mixed & np.uint64(VIRTUAL_PARTITIONS - 1))
        if share_of_256 * partitions // VIRTUAL_PARTITIONS != index:
            continue
        records += 1
        if src[i] == dst[i]:
            self_loops += 1
            continue
        place = np.int64(mix64(mixed + np.uint64(dst[i])) & np.uint64(mask))
        while True:
            entry = table[place]
            if entry < 0:
                table[place] = distinct
                last[distinct] = i
                distinct += 1
                break
            if src[last[entry]] == src[i] and dst[last[entry]] == dst[i]:
                last[entry] = i
                break
            place = (place + 1) & mask
    return records, self_loops, distinct


class _Changed(NamedTuple):
    """Net edge changes found by :func:`link`, each of shape (room,), and their lane sums."""

    follower: Slots
    followed: Slots
    record: Longs
    lanes: Lanes


class _Ahead(NamedTuple):
    """What a block of records concerns, as it was before the block; each of shape (BLOCK_RECORDS,)."""

    follower: Slots
    """Its slot, -1 where it has none."""
    followed: Slots
    present: npt.NDArray[np.bool_]
    """Whether there is the edge."""


@compiled
def _look_ahead(
    vertices: Vertices, storage: Storage, src: Longs, dst: Longs, last: Longs, begin: Int, end: Int, ahead: _Ahead
) -> None:
    """Look up what the records concern.

    Nothing here depends on the record before, so the processor waits for many places of memory at a time;
    changing the graph record by record, it would wait for one after the other.
    """
    for position in range(begin, end):
        ahead.follower[position - begin] = find(vertices, storage, src[last[position]])
        ahead.followed[position - begin] = find(vertices, storage, dst[last[position]])
    for at in range(end - begin):
        follower, followed = np.int64(ahead.follower[at]), np.int64(ahead.followed[at])
        ahead.present[at] = follower >= 0 and followed >= 0 and row_place(vertices, storage, follower, followed) >= 0


@compiled
def link(
    vertices: Vertices,
    storage: Storage,
    src: Longs,
    dst: Longs,
    op: npt.NDArray[np.int8],
    last: Longs,
    begin: int,
    end: int,
    index: int,
    partitions: int,
    ahead: _Ahead,
    changes: _Changed,
    count: int,
) -> tuple[int, int, int]:
    """Bring each edge to the state its last record asks for, and list the edges that changed.

    Stops where room is short; call again from there once :func:`graph_stream.adjacency.grow` made some.

    Parameters
    ----------
    vertices, storage
        The graph.
    src, dst, op : ndarray, shape (n,)
        Records; ``op`` is +1 or -1.
    last : ndarray of int64
        Positions of the deciding records, of which those in ``begin .. end - 1`` are applied.
    begin, end, index, partitions : int
        Bounds in ``last``; the member, and how many there are.
    ahead : _Ahead
        Scratch.
    changes : _Changed
        Receives the changes from position ``count`` on.
    count : int
        Changes so far.

    Returns
    -------
    position, count, shortage : int
        Where in ``last`` to go on, changes so far, and what ran short (``NOTHING`` at the end).
    """
    first = block = begin
    for position in range(begin, end):
        if position == block:
            block = min(block + BLOCK_RECORDS, end)
            _look_ahead(vertices, storage, src, dst, last, position, block, ahead)
            first = position
        i = last[position]
        # Edges are distinct, so no other record of the block has brought or taken this one.
        if (op[i] > 0) == ahead.present[position - first]:
            continue
        # A vertex stays where it was, but one that was not there may have come with a record of the block.
        follower = np.int64(ahead.follower[position - first])
        if follower < 0:
            follower = find(vertices, storage, src[i])
        followed = np.int64(ahead.followed[position - first])
        if followed < 0:
            followed = find(vertices, storage, dst[i])
        low, high = edge_lanes(src[i], dst[i])
        if op[i] > 0:
            shortage = shortage_of(vertices, storage, follower)
            if shortage != NOTHING:
                return position, count, shortage
            if follower < 0:
                follower = add(vertices, storage, src[i], True)
            if followed < 0:
                followed = add(vertices, storage, dst[i], member_of(dst[i], partitions) == index)
            connect(vertices, storage, follower, followed)
            changes.lanes[0] += low
            changes.lanes[1] += high
        else:
            place = row_place(vertices, storage, follower, followed)
            disconnect(vertices, storage, follower, followed, place)
            changes.lanes[0] -= low
            changes.lanes[1] -= high
        changes.follower[count] = follower
        changes.followed[count] = followed
        changes.record[count] = i
        count += 1
    return end, count, NOTHING


@compiled
def follow(vertices: Vertices, storage: Storage, followed: Longs, change: Longs, begin: int) -> tuple[int, int]:
    """Change the number of followers of owned vertices; return position and shortage as :func:`link` does."""
    for i in range(begin, len(followed)):
        slot = find(vertices, storage, followed[i])
        if slot < 0:
            shortage = shortage_of(vertices, storage, -1)
            if shortage != NOTHING:
                return i, shortage
            slot = add(vertices, storage, followed[i], True)
        vertices.followers[slot] += change[i]
    return len(followed), NOTHING


@compiled
def find_all(vertices: Vertices, storage: Storage, ids: Longs, slots: Slots) -> None:
    """Write the slot of each id, -1 where it has none."""
    for i in range(len(ids)):
        slots[i] = find(vertices, storage, ids[i])


@compiled
def release(vertices: Vertices, storage: Storage, slots: Slots) -> None:
    """Take back those of the slots that lost their last edge; a slot may occur repeatedly."""
    for i in range(len(slots)):
        slot = np.int64(slots[i])
        if vertices.degree[slot] == 0 and vertices.followers[slot] == 0:
            remove(vertices, storage, slot)


@dataclass(frozen=True)
class Links:
    """Net edge changes of an epoch at one member."""

    follower: Slots
    """Shape (n,), as all arrays here."""
    followed: Slots
    record: Longs
    """Position of the record that decided."""
    change: Longs
    """+1 for an insert, -1 for a delete."""
    records: int
    """Records of followers this member owns, changes or not."""
    self_loops: int
    """Those of them that were dropped because follower and followed are the same."""


class Adjacency:
    """One member's vertices and edges, in arrays that grow.

    Parameters
    ----------
    index, partitions : int
        The member, and how many there are.
    """

    def __init__(self, index: int, partitions: int) -> None:
        self.index = index
        self.partitions = partitions
        self.vertices, self.storage = adjacency.empty()

    def change_edges(self, src: Longs, dst: Longs, op: npt.NDArray[np.int8], lanes: Lanes) -> Links:
        """Bring edges to the state the records ask for; contributions and influence stay as they are.

        Parameters
        ----------
        src, dst, op : ndarray of int64, int64 and int8, shape (n,)
            Records in order, also those of other members.
        lanes : ndarray of uint64, shape (2,)
            Lane sums of the state hash, brought up to date.
        """
        src, dst, op = flat(src), flat(dst), np.require(op, np.int8, ["C", "W"])
        last = np.empty(len(src), np.int64)
        table = np.full(1 << max(2 * len(src) - 1, 1).bit_length(), -1, np.int32)
        records, self_loops, distinct = select(src, dst, self.index, self.partitions, table, last)
        changed = _Changed(
            np.empty(distinct, np.int32), np.empty(distinct, np.int32), np.empty(distinct, np.int64), lanes
        )
        ahead = _Ahead(*(np.empty(BLOCK_RECORDS, kind) for kind in (np.int32, np.int32, np.bool_)))
        position = count = 0
        while position < distinct:
            position, count, shortage = link(
                self.vertices,
                self.storage,
                src,
                dst,
                op,
                last,
                position,
                distinct,
                self.index,
                self.partitions,
                ahead,
                changed,
                count,
            )
            self._grow(shortage)
        record = changed.record[:count]
        change = op[record].astype(np.int64)
        return Links(changed.follower[:count], changed.followed[:count], record, change, records, self_loops)

    def change_followers(self, followed: Longs, change: Longs) -> Slots:
        """Change the number of followers of owned vertices, on another member's word.

        Parameters
        ----------
        followed, change : ndarray of int64, shape (n,)
            External ids, and by how much.

        Returns
        -------
        ndarray of int32
            Slots that lost followers.
        """
        followed, change = flat(followed), flat(change)
        position = 0
        while position < len(followed):
            position, shortage = follow(self.vertices, self.storage, followed, change, position)
            self._grow(shortage)
        return self.slots_of(followed[change < 0])

    def _grow(self, shortage: int) -> None:
        if shortage != NOTHING:
            self.vertices, self.storage = adjacency.grow(self.vertices, self.storage, shortage)

    def release(self, slots: Slots) -> None:
        """Take back those of the slots that have no edge left; a slot may occur repeatedly."""
        release(self.vertices, self.storage, slots)

    def slots_of(self, ids: Longs) -> Slots:
        """Return the slot of each external id.

        Raises
        ------
        UnknownVertex
            If one has none.
        """
        slots = np.empty(len(ids), np.int32)
        find_all(self.vertices, self.storage, flat(ids), slots)
        if len(slots) and slots.min() < 0:
            message = f"vertex {ids[slots.argmin()]} has no edge at partition {self.index} of {self.partitions}"
            raise UnknownVertex(message)
        return slots

    def owned_slots(self) -> Longs:
        """Return the slots of all owned vertices."""
        used = self.storage.counters[USED]
        return np.flatnonzero(self.vertices.owned[:used] & (self.vertices.degree[:used] >= 0))

    def ghost_slots(self) -> Longs:
        """Return the slots of all ghosts."""
        used = self.storage.counters[USED]
        return np.flatnonzero(~self.vertices.owned[:used] & (self.vertices.degree[:used] >= 0))

    def edge_slots(self) -> tuple[Slots, Slots]:
        """Return the slots of follower and followed of every edge."""
        count = self.storage.counters[EDGES]
        follower, followed = np.empty(count, np.int32), np.empty(count, np.int32)
        edges(self.vertices, self.storage, follower, followed)
        return follower, followed


def flat(array: Longs) -> Longs:
    """Return an array as the kernels take it, contiguous and writeable; a copy only where it is not."""
    return np.require(array, np.int64, ["C", "W"])
