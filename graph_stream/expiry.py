"""Edges whose time has passed: who has some, and taking them away.

A wheel holds each vertex that follows someone under a time that none of its edges is older than. So what is due is
found without a look at other rows, one entry a vertex instead of one an edge; a refresh leaves it where it is, and
costs a look at the row when that time comes.
"""

from __future__ import annotations

import numpy as np

from graph_stream.adjacency import Slots, Storage, Vertices
from graph_stream.compiled import Int, compiled
from graph_stream.rows import disconnect, row_end, row_place
from graph_stream.statehash import Lanes, timed_edge_lanes
from graph_stream.wheel import Wheel, file, unfile


@compiled
def gained_edge(vertices: Vertices, oldest: Wheel, follower: Int, time: Int) -> None:
    """Take note of a new edge: who had none before is not in the wheel yet."""
    if len(oldest.heads) == 0:
        return
    if vertices.degree[follower] == 1:
        file(oldest, follower, time)
    elif time < oldest.due[follower]:
        unfile(oldest, follower)
        file(oldest, follower, time)


@compiled
def lost_edge(vertices: Vertices, oldest: Wheel, follower: Int) -> None:
    """Take note that an edge is gone: who has none left is in the wheel no more."""
    if len(oldest.heads) > 0 and vertices.degree[follower] == 0:
        unfile(oldest, follower)


@compiled
def expire(
    vertices: Vertices,
    storage: Storage,
    oldest: Wheel,
    bound: Int,
    first: Int,
    begin: Int,
    chains: Int,
    lanes: Lanes,
    follower: Slots,
    followed: Slots,
) -> tuple[Int, int]:
    """Remove the edges older than a bound.

    Stops where a whole row might not fit into what is to be returned; call again from there.

    Parameters
    ----------
    vertices, storage, oldest
        The graph, and who has how old edges.
    bound : int
        Time before which edges go.
    first, begin, chains : int
        First chain of the sweep (:func:`graph_stream.wheel.sweep_of`), how many of it are done, and how many it has.
    lanes : ndarray of uint64, shape (2,)
        Lane sums, brought up to date.
    follower, followed : ndarray of int32, shape (at least the largest degree,)
        Receive the slots of the edges.

    Returns
    -------
    chain, count : int
        Chains done, and edges removed.
    """
    count = 0
    for chain in range(begin, chains):
        slot = np.int64(oldest.heads[(first + chain) & (len(oldest.heads) - 1)])
        while slot >= 0:
            following = np.int64(oldest.following[slot])
            if oldest.due[slot] < bound:
                if count + vertices.degree[slot] > len(follower):
                    return chain, count
                begin_of_row = count
                least = np.int64(0)
                kept = 0
                for place in range(vertices.row[slot], row_end(vertices, slot)):
                    if storage.arena[place] < 0:
                        continue
                    time = storage.times[place]
                    if time < bound:
                        follower[count] = slot
                        followed[count] = storage.arena[place]
                        count += 1
                        low, high = timed_edge_lanes(vertices.id[slot], vertices.id[storage.arena[place]], time)
                        lanes[0] -= low
                        lanes[1] -= high
                    else:
                        least = min(least, time) if kept else time
                        kept += 1
                # A row is rearranged by each edge that leaves it.
                for edge in range(begin_of_row, count):
                    target = np.int64(followed[edge])
                    disconnect(vertices, storage, slot, target, row_place(vertices, storage, slot, target))
                unfile(oldest, slot)
                if kept:
                    file(oldest, slot, least)
            slot = following
    return chains, count
