"""What an epoch changed in a ranking at one member: whose influence is another than before, who came, who left.

It is a function of the state before the epoch and the one after, and of nothing in between: a vertex whose
influence went up and came back has not changed. So it is the same on any partitioning, in any execution of the
rounds, and when the epoch is computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graph_stream.adjacency import Longs, Slots, Vertices
from graph_stream.growable import widened

BYTES_PER_SLOT = 9
"""What a watch keeps of each vertex."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Best:
    """The vertices with most influence, best first, of equal ones the smaller id first."""

    vertex: Longs
    """External ids; shape (m,)."""
    influence: Longs
    """``X`` in fixed point; shape (m,)."""


@dataclass(frozen=True)
class Changed:
    """What an epoch changed among a member's own vertices."""

    vertex: Longs
    """External ids of those that came, left, or whose influence is another than before, each once; shape (n,)."""
    influence: Longs
    """Their ``X`` after the epoch in fixed point, 0 for those that left; shape (n,)."""
    left: Bools
    """Whether they left the graph with their last edge; shape (n,)."""
    before: Best
    """The member's best vertices before the epoch; empty where nobody asks for them."""
    after: Best
    """The member's best vertices after it."""


_NOBODY = Best(np.empty(0, np.int64), np.empty(0, np.int64))


class Watch:
    """One ranking's influence as of the last epoch, by slot, to compare the next one with.

    Parameters
    ----------
    best : int
        How many of the best vertices to follow; 0 is none.
    """

    def __init__(self, best: int = 0) -> None:
        self._most = best
        self._influence = np.zeros(0, np.int64)
        self._present = np.zeros(0, np.bool_)
        self._best = _NOBODY

    def begin(self, vertices: Vertices, influence: Longs, owned: Longs) -> None:
        """Take a whole state as the first one to compare with.

        Parameters
        ----------
        vertices : Vertices
            The graph.
        influence : ndarray of int64, shape (capacity,)
            ``X`` per slot.
        owned : ndarray of int64, shape (n,)
            The slots of all owned vertices.
        """
        self._fit(vertices)
        self._influence[owned] = influence[owned]
        self._present[owned] = True
        self._best = _best_of(vertices.id[owned], influence[owned], self._most)

    def close(
        self, vertices: Vertices, influence: Longs, seen: Slots, unlinked: Slots, owned: Callable[[], Longs]
    ) -> Changed:
        """Compare the state after an epoch with the one before, and take it as the next to compare with.

        Parameters
        ----------
        vertices : Vertices
            The graph, in which vertices that have lost their last edge still have their slots.
        influence : ndarray of int64, shape (capacity,)
            ``X`` per slot.
        seen : ndarray of int32, shape (s,)
            Owned slots, each once, among them all that came and all whose influence is another.
        unlinked : ndarray of int32, shape (u,)
            Slots that lost an edge; repeated ones and ghosts are ignored.
        owned : callable
            Returns the slots of all owned vertices that have an edge; called where all have to be looked at.
        """
        self._fit(vertices)
        unlinked = np.unique(unlinked)
        gone = unlinked[_without_edge(vertices, unlinked) & self._present[unlinked]]
        seen = seen[~_without_edge(vertices, seen)]
        moved = seen[~self._present[seen] | (influence[seen] != self._influence[seen])]
        fell = influence[moved] < self._influence[moved]
        self._influence[moved], self._influence[gone] = influence[moved], 0
        self._present[moved], self._present[gone] = True, False

        slots = np.concatenate([moved, gone])
        before = self._best
        if self._most:
            self._best = self._next_best(vertices.id, influence, moved, np.concatenate([moved[fell], gone]), owned)
        left = np.arange(len(slots)) >= len(moved)
        return Changed(vertices.id[slots], self._influence[slots], left, before, self._best)

    def _fit(self, vertices: Vertices) -> None:
        if len(self._present) < len(vertices.id):
            self._influence = widened(self._influence, len(vertices.id))
            self._present = widened(self._present, len(vertices.id))

    def _next_best(self, ids: Longs, influence: Longs, moved: Slots, worse: Slots, owned: Callable[[], Longs]) -> Best:
        """Return the best vertices after an epoch, given whose influence moved, and who got worse or left."""
        if np.isin(self._best.vertex, ids[worse]).any():
            # Somebody unchanged may take the place: only a look at all of them tells.
            slots = owned()
            return _best_of(ids[slots], influence[slots], self._most)
        stay = ~np.isin(self._best.vertex, ids[moved])
        return _best_of(
            np.concatenate([self._best.vertex[stay], ids[moved]]),
            np.concatenate([self._best.influence[stay], influence[moved]]),
            self._most,
        )


def _without_edge(vertices: Vertices, slots: Slots) -> Bools:
    without: Bools = (vertices.degree[slots] == 0) & (vertices.followers[slots] == 0)
    return without


def _best_of(vertex: Longs, influence: Longs, most: int) -> Best:
    if most == 0:
        return _NOBODY
    if len(influence) > most:
        # The last one's influence is cheap to find, and leaves few to sort; ties with it are decided by id.
        last = len(influence) - most
        kept = influence >= np.partition(influence, last)[last]
        vertex, influence = vertex[kept], influence[kept]
    order = np.lexsort((vertex, -influence))[:most]
    return Best(vertex[order], influence[order])
