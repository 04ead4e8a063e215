"""How the records of an epoch change the graph.

Only the net change of an edge counts: of several records of one edge in an epoch the last decides, and it
changes something only if the edge was not already as it says (docs/design/0003-online-state.md). A vertex
exists while it has an edge.

With event time the last is the one with the greatest time, of equal ones the last of the epoch. It is ignored if
what is known of the edge is younger: the time it was last stated at, or, where a delete took it, its tombstone's.
Records past the horizon are late and dropped; edges past the expiry go, whatever else the epoch brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream import adjacency
from graph_stream.adjacency import (
    EDGES,
    MAX_DEGREE,
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
from graph_stream.compiled import Int, compiled, prefetch
from graph_stream.eventtime import NEVER, EventTime, EventTimes
from graph_stream.expiry import expire, gained_edge, lost_edge
from graph_stream.idtable import home_of
from graph_stream.loading import load_edges
from graph_stream.ownership import VIRTUAL_PARTITIONS, member_of, mix64
from graph_stream.rows import connect, disconnect, edges, row_home, row_place, shortage_of
from graph_stream.statehash import Lanes, edge_lanes, timed_edge_lanes
from graph_stream.tombstones import LIVE as TOMBSTONES
from graph_stream.tombstones import Tombstones, drop, forget, list_all, no_tombstones, put
from graph_stream.tombstones import find as find_tombstone
from graph_stream.tombstones import fitted as fitted_tombstones
from graph_stream.wheel import Wheel, no_wheel, sweep_of, wheel_for
from graph_stream.wheel import fitted as fitted_wheel

BLOCK_RECORDS = 1024
"""Records that are looked up together: enough to wait for much of memory at once, few enough to stay in cache."""
_BLOCK_EXPIRED = 1 << 12
"""Edges that expire in one go, or as many as the longest row has."""
_NO_TIMES = np.empty(0, np.int64)


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
def select(
    src: Longs, dst: Longs, time: Longs, horizon: Int, index: Int, partitions: Int, table: Slots, last: Longs
) -> tuple[int, int, int, int]:
    """Find, among one member's records, the last one of each distinct edge.

    Parameters
    ----------
    src, dst : ndarray of int64, shape (n,)
        Followers and followed of the whole epoch, in order.
    time : ndarray of int64, shape (n,) or (0,)
        Event times; empty without.
    horizon : int
        Records older than this are late.
    index, partitions : int
        The member, and how many there are.
    table : ndarray of int32, shape (a power of two, at least 2n)
        Scratch, all -1.
    last : ndarray of int64, shape (n,)
        Receives, per distinct edge in order of first appearance, the position of its last record.

    Returns
    -------
    records, self_loops, late, distinct : int
        Records of followers the member owns; self-loops among them; late ones among the others; distinct edges
        among the rest.
    """
    mask = len(table) - 1
    records = 0
    self_loops = 0
    late = 0
    distinct = 0
    timed = len(time) > 0
    for i in range(len(src)):
        mixed = mix64(np.uint64(src[i]))
        share_of_256 = np.int64(mixed & np.uint64(VIRTUAL_PARTITIONS - 1))
        if share_of_256 * partitions // VIRTUAL_PARTITIONS != index:
            continue
        records += 1
        if src[i] == dst[i]:
            self_loops += 1
            continue
        if timed and time[i] < horizon:
            late += 1
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
                if not timed or time[i] >= time[last[entry]]:
                    last[entry] = i
                break
            place = (place + 1) & mask
    return records, self_loops, late, distinct


class _Changed(NamedTuple):
    """What :func:`link` found, each of shape (room,), and the lane sums."""

    follower: Slots
    """Of a net edge change; as the next two."""
    followed: Slots
    change: npt.NDArray[np.int8]
    stated: Longs
    """Positions of the records that said something new, be it only a time."""
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

    Nothing here depends on the record before, so memory is fetched for many records at a time, one step of the way
    after the other; changing the graph record by record, the processor would wait for each step of each.
    """
    table = storage.table
    for position in range(begin, end):
        prefetch(table.entries, home_of(table, src[last[position]]))
        prefetch(table.entries, home_of(table, dst[last[position]]))
    for position in range(begin, end):
        likely = table.entries[home_of(table, src[last[position]])]
        prefetch(vertices.id, likely)
        prefetch(vertices.degree, likely)
        prefetch(vertices.row, likely)
        prefetch(vertices.row_bits, likely)
        likely = table.entries[home_of(table, dst[last[position]])]
        prefetch(vertices.id, likely)
        prefetch(vertices.followers, likely)
    for position in range(begin, end):
        follower = find(vertices, storage, src[last[position]])
        followed = find(vertices, storage, dst[last[position]])
        ahead.follower[position - begin], ahead.followed[position - begin] = follower, followed
        if follower >= 0 and followed >= 0:
            prefetch(storage.arena, row_home(vertices, follower, followed))
    for at in range(end - begin):
        follower, followed = np.int64(ahead.follower[at]), np.int64(ahead.followed[at])
        ahead.present[at] = follower >= 0 and followed >= 0 and row_place(vertices, storage, follower, followed) >= 0


@compiled
def link(
    vertices: Vertices,
    storage: Storage,
    oldest: Wheel,
    tombstones: Tombstones,
    src: Longs,
    dst: Longs,
    op: npt.NDArray[np.int8],
    time: Longs,
    last: Longs,
    begin: int,
    end: int,
    index: int,
    partitions: int,
    ahead: _Ahead,
    changes: _Changed,
    count: int,
    stated: int,
) -> tuple[int, int, int, int]:
    """Bring each edge to the state its last record asks for, and list the edges that changed.

    Stops where room is short; call again from there once :func:`graph_stream.adjacency.grow` made some.

    Parameters
    ----------
    vertices, storage
        The graph.
    oldest, tombstones
        With event time, who has how old edges, and deletes that are remembered, with room for one more a record.
    src, dst, op : ndarray, shape (n,)
        Records; ``op`` is +1 or -1.
    time : ndarray of int64, shape (n,) or (0,)
        Event times, if edges have times.
    last : ndarray of int64
        Positions of the deciding records, of which those in ``begin .. end - 1`` are applied.
    begin, end, index, partitions : int
        Bounds in ``last``; the member, and how many there are.
    ahead : _Ahead
        Scratch.
    changes : _Changed
        Receives the changes from position ``count`` on, and records from position ``stated`` on.
    count, stated : int
        Changes and records that said something new so far.

    Returns
    -------
    position, count, stated, shortage : int
        Where in ``last`` to go on, the two counts so far, and what ran short (``NOTHING`` at the end).
    """
    timed = len(storage.times) > 0
    lanes = changes.lanes
    first = block = begin
    for position in range(begin, end):
        if position == block:
            block = min(block + BLOCK_RECORDS, end)
            _look_ahead(vertices, storage, src, dst, last, position, block, ahead)
            first = position
        i = last[position]
        # Edges are distinct, so no other record of the block has brought or taken this one.
        present = ahead.present[position - first]
        if not timed and (op[i] > 0) == present:
            continue
        # A vertex stays where it was, but one that was not there may have come with a record of the block.
        follower: Int = np.int64(ahead.follower[position - first])
        if follower < 0:
            follower = find(vertices, storage, src[i])
        followed: Int = np.int64(ahead.followed[position - first])
        if followed < 0:
            followed = find(vertices, storage, dst[i])
        place = row_place(vertices, storage, follower, followed) if present else np.int64(-1)
        tombstone: Int = np.int64(-1)
        if timed:
            known = NEVER
            if present:
                known = storage.times[place]
            else:
                tombstone = find_tombstone(tombstones, src[i], dst[i])
                if tombstone >= 0:
                    known = tombstones.wheel.due[tombstone]
            if time[i] < known or (time[i] == known and (op[i] > 0) == present):
                continue
        if op[i] > 0 and not present:
            shortage = shortage_of(vertices, storage, follower)
            if shortage != NOTHING:
                return position, count, stated, shortage
            if follower < 0:
                follower = add(vertices, storage, src[i], True)
            if followed < 0:
                followed = add(vertices, storage, dst[i], member_of(dst[i], partitions) == index)
        changes.stated[stated] = i
        stated += 1
        if present:
            low, high = _edge_lanes(storage, place, src[i], dst[i])
            lanes[0] -= low
            lanes[1] -= high
            if op[i] < 0:
                disconnect(vertices, storage, follower, followed, place)
        elif op[i] > 0:
            place = connect(vertices, storage, follower, followed)
        if timed:
            if tombstone >= 0:
                drop(tombstones, tombstone, lanes)
            if op[i] < 0:
                put(tombstones, src[i], dst[i], time[i], lanes)
                if present:
                    lost_edge(vertices, oldest, follower)
            else:
                storage.times[place] = time[i]
                if not present:
                    gained_edge(vertices, oldest, follower, time[i])
        if op[i] > 0:
            low, high = _edge_lanes(storage, place, src[i], dst[i])
            lanes[0] += low
            lanes[1] += high
        if (op[i] > 0) != present:
            changes.follower[count] = follower
            changes.followed[count] = followed
            changes.change[count] = op[i]
            count += 1
    return end, count, stated, NOTHING


@compiled
def _edge_lanes(storage: Storage, place: Int, follower: Int, followed: Int) -> tuple[np.uint64, np.uint64]:
    """Return the lane values of the edge at a place, with its time if it has one."""
    if len(storage.times) > 0:
        return timed_edge_lanes(follower, followed, storage.times[place])
    return edge_lanes(follower, followed)


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
    change: Longs
    """+1 for an edge that came, -1 for one that went."""
    stated: Longs
    """Positions of the records that said something new: who brought or took an edge; with event time also who
    only moved a time. Shape (m,)."""
    forgotten: tuple[Longs, Longs]
    """External ids of pairs of which nothing is known any more: expired edges, and tombstones past the horizon.
    Shape (f,) each."""
    records: int
    """Records of followers this member owns, changes or not."""
    self_loops: int
    """Those of them that were dropped because follower and followed are the same."""
    late: int
    """Those of them that were dropped because they were past the horizon."""
    expired: int
    """Edges that went because their time had passed."""


class Adjacency:
    """One member's vertices and edges, in arrays that grow.

    Parameters
    ----------
    index, partitions : int
        The member, and how many there are.
    event_time : EventTime, optional
        How long records count; None: edges have no times.
    """

    def __init__(self, index: int, partitions: int, event_time: EventTime | None = None) -> None:
        self.index = index
        self.partitions = partitions
        self.event_time = event_time
        self.watermark = NEVER
        """Of the last epoch; with event time."""
        self.vertices, self.storage = adjacency.empty(timed=event_time is not None)
        self.oldest = no_wheel()
        if event_time is not None and event_time.window is not None:
            self.oldest = fitted_wheel(wheel_for(event_time.window), len(self.vertices.id))
        self.tombstones = no_tombstones(None if event_time is None else event_time.reach)

    def change_edges(
        self, src: Longs, dst: Longs, op: npt.NDArray[np.int8], lanes: Lanes, times: EventTimes | None = None
    ) -> Links:
        """Bring edges to the state the records ask for; contributions and influence stay as they are.

        Parameters
        ----------
        src, dst, op : ndarray of int64, int64 and int8, shape (n,)
            Records in order, also those of other members.
        lanes : ndarray of uint64, shape (2,)
            Lane sums of the state hash, brought up to date.
        times : EventTimes, optional
            When the records happened, and the watermark; with event time.
        """
        src, dst, op = flat(src), flat(dst), np.require(op, np.int8, ["C", "W"])
        time = _NO_TIMES if times is None else flat(times.time)
        horizon = NEVER if times is None or self.event_time is None else self.event_time.horizon(times.watermark)
        last = np.empty(len(src), np.int64)
        table = np.full(1 << max(2 * len(src) - 1, 1).bit_length(), -1, np.int32)
        records, self_loops, late, distinct = select(src, dst, time, horizon, self.index, self.partitions, table, last)
        if times is not None:
            self.tombstones = fitted_tombstones(self.tombstones, int(np.count_nonzero(op[last[:distinct]] < 0)))
        changed = _Changed(
            np.empty(distinct, np.int32),
            np.empty(distinct, np.int32),
            np.empty(distinct, np.int8),
            np.empty(distinct, np.int64),
            lanes,
        )
        ahead = _Ahead(
            np.empty(BLOCK_RECORDS, np.int32),
            np.empty(BLOCK_RECORDS, np.int32),
            np.empty(BLOCK_RECORDS, np.bool_),
        )
        position = count = stated = 0
        while position < distinct:
            position, count, stated, shortage = link(
                self.vertices,
                self.storage,
                self.oldest,
                self.tombstones,
                src,
                dst,
                op,
                time,
                last,
                position,
                distinct,
                self.index,
                self.partitions,
                ahead,
                changed,
                count,
                stated,
            )
            self._grow(shortage)
        # Records that count are younger than what expires, so it is all the same whether they come before or after;
        # after them, an edge that is stated anew need not go first.
        follower, followed, forgotten = self._forget(lanes, times)
        return Links(
            np.concatenate([changed.follower[:count], follower]),
            np.concatenate([changed.followed[:count], followed]),
            np.concatenate([changed.change[:count], np.full(len(follower), -1, np.int8)]).astype(np.int64),
            changed.stated[:stated],
            forgotten,
            records,
            self_loops,
            late,
            expired=len(follower),
        )

    def load_edges(self, src: Longs, dst: Longs, lanes: Lanes, time: Longs) -> None:
        """Add edges that this member owns and has not, no one twice; those of a follower should be side by side.

        Parameters
        ----------
        src, dst : ndarray of int64, shape (n,)
            Followers and followed.
        lanes : ndarray of uint64, shape (2,)
            Lane sums of the state hash, brought up to date.
        time : ndarray of int64, shape (n,) or (0,)
            Their times, with event time.
        """
        src, dst, time = flat(src), flat(dst), flat(time)
        ahead = np.empty(BLOCK_RECORDS, np.int32)
        position = 0
        while position < len(src):
            position, shortage = load_edges(
                self.vertices,
                self.storage,
                self.oldest,
                src,
                dst,
                time,
                position,
                self.index,
                self.partitions,
                ahead,
                lanes,
            )
            self._grow(shortage)

    def _forget(self, lanes: Lanes, times: EventTimes | None) -> tuple[Slots, Slots, tuple[Longs, Longs]]:
        """Remove what the watermark leaves behind; return the slots of expired edges, and all pairs forgotten."""
        before, after = self.watermark, NEVER if times is None else times.watermark
        none = np.empty(0, np.int32)
        if self.event_time is None or after == NEVER:
            return none, none, (_NO_TIMES, _NO_TIMES)
        self.watermark = after
        expiry, horizon = self.event_time.expiry, self.event_time.horizon
        follower, followed = self._expire(expiry(after), *sweep_of(self.oldest, expiry(before), expiry(after)), lanes)
        first, chains = sweep_of(self.tombstones.wheel, horizon(before), horizon(after))
        src, dst = (np.empty(self.tombstones.counters[TOMBSTONES], np.int64) for _ in range(2))
        count = forget(self.tombstones, horizon(after), first, chains, lanes, src, dst)
        ids = self.vertices.id
        forgotten = np.concatenate([ids[follower], src[:count]]), np.concatenate([ids[followed], dst[:count]])
        return follower, followed, forgotten

    def _expire(self, bound: int, first: int, chains: int, lanes: Lanes) -> tuple[Slots, Slots]:
        found: list[tuple[Slots, Slots]] = [(np.empty(0, np.int32), np.empty(0, np.int32))]
        room = max(int(self.storage.counters[MAX_DEGREE]), _BLOCK_EXPIRED)
        done: Int = 0
        while done < chains:
            follower, followed = np.empty(room, np.int32), np.empty(room, np.int32)
            done, count = expire(
                self.vertices, self.storage, self.oldest, bound, first, done, chains, lanes, follower, followed
            )
            found.append((follower[:count], followed[:count]))
        return np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])

    def buried(self) -> tuple[Longs, Longs, Longs]:
        """Return follower, followed and time of every tombstone."""
        columns = [np.empty(self.tombstones.counters[TOMBSTONES], np.int64) for _ in range(3)]
        list_all(self.tombstones, *columns)
        return columns[0], columns[1], columns[2]

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
            self.oldest = fitted_wheel(self.oldest, len(self.vertices.id))

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

    def edge_slots(self) -> tuple[Slots, Slots, Longs]:
        """Return the slots of follower and followed of every edge, and, if edges have times, these; else no times."""
        count = self.storage.counters[EDGES]
        follower, followed = np.empty(count, np.int32), np.empty(count, np.int32)
        time = np.empty(count if self.event_time is not None else 0, np.int64)
        edges(self.vertices, self.storage, follower, followed, time)
        return follower, followed, time


def flat(array: Longs) -> Longs:
    """Return an array as the kernels take it, contiguous and writeable; a copy only where it is not."""
    return np.require(array, np.int64, ["C", "W"])
