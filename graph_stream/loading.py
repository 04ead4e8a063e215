"""Edges of a stored state, put into an empty graph.

A stored state holds every edge once, edges of one follower beside each other. So nothing is looked for before it is
added, and a row is cut once, as long as it has to be.
"""

from __future__ import annotations

from graph_stream.adjacency import NOTHING, ROWS, Longs, Slots, Storage, Vertices, add, find
from graph_stream.compiled import Int, compiled, prefetch
from graph_stream.expiry import gained_edge
from graph_stream.idtable import home_of
from graph_stream.ownership import member_of
from graph_stream.rows import connect, cut_row, shortage_of
from graph_stream.statehash import Lanes, edge_lanes, timed_edge_lanes
from graph_stream.wheel import Wheel


@compiled
def load_edges(
    vertices: Vertices,
    storage: Storage,
    oldest: Wheel,
    src: Longs,
    dst: Longs,
    time: Longs,
    begin: int,
    index: int,
    partitions: int,
    ahead: Slots,
    lanes: Lanes,
) -> tuple[int, int]:
    """Add edges from position ``begin`` on.

    Stops where room is short; call again from there once :func:`graph_stream.adjacency.grow` made some.

    Parameters
    ----------
    vertices, storage, oldest
        The graph, and with event time who has how old edges.
    src, dst : ndarray of int64, shape (n,)
        Followers, which this member owns, and followed: no edge twice, and none that the graph has.
    time : ndarray of int64, shape (n,) or (0,)
        Times of the edges, if they have any.
    begin, index, partitions : int
        Where to go on; the member, and how many there are.
    ahead : ndarray of int32, shape (b,)
        Scratch: how many are looked up together.
    lanes : ndarray of uint64, shape (2,)
        Lane sums of the edges, brought up to date.

    Returns
    -------
    position, shortage : int
        Where to go on, and what ran short (``NOTHING`` at the end).
    """
    first = block = begin
    follower: Int
    cut: Int
    follower = cut = -1
    for position in range(begin, len(src)):
        if position == block:
            # Nothing here waits for what is found before: memory is fetched for many edges at a time.
            block = min(block + len(ahead), len(src))
            first = position
            for each in range(position, block):
                prefetch(storage.table.entries, home_of(storage.table, dst[each]))
            for each in range(position, block):
                likely = storage.table.entries[home_of(storage.table, dst[each])]
                prefetch(vertices.id, likely)
                prefetch(vertices.followers, likely)
            for each in range(position, block):
                ahead[each - first] = find(vertices, storage, dst[each])
        if follower < 0 or src[position] != src[position - 1]:
            follower = find(vertices, storage, src[position])
        shortage = shortage_of(vertices, storage, follower)
        if shortage != NOTHING:
            return position, shortage
        if follower < 0:
            follower = add(vertices, storage, src[position], True)
        if cut != follower:
            cut = follower
            if vertices.degree[follower] == 0 and not cut_row(vertices, storage, follower, _run(src, position)):
                return position, ROWS
        followed: Int = int(ahead[position - first])
        if followed < 0:
            followed = find(vertices, storage, dst[position])
        if followed < 0:
            followed = add(vertices, storage, dst[position], member_of(dst[position], partitions) == index)
        place = connect(vertices, storage, follower, followed)
        if len(time) > 0:
            storage.times[place] = time[position]
            gained_edge(vertices, oldest, follower, time[position])
            low, high = timed_edge_lanes(src[position], dst[position], time[position])
        else:
            low, high = edge_lanes(src[position], dst[position])
        lanes[0] += low
        lanes[1] += high
    return len(src), NOTHING


@compiled
def _run(src: Longs, begin: Int) -> Int:
    """Return how many edges from ``begin`` on have one follower."""
    end = begin + 1
    while end < len(src) and src[end] == src[begin]:
        end += 1
    return end - begin
