"""How one member executes its part of a round: sparse or dense, on one thread or several.

A round has two phases with a barrier between them, so that all reads come before all writes: every thread
evaluates its share of the frontier and sorts what is emitted into one bucket per thread; then every thread
delivers one bucket, so that no two threads add to one vertex. All sums are integers: any order gives the same
state, and so do a sparse round (the frontier is a list kept while delivering) and a dense one (the frontier
is found by scanning flags).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from graph_stream import kernels
from graph_stream.adjacency import USED, Longs, Slots, Storage, Vertices
from graph_stream.certificate import BUCKETS
from graph_stream.crowding import Crowding
from graph_stream.growable import widened
from graph_stream.kernels import Found, Rule, Visits
from graph_stream.ranks import Ranks
from graph_stream.statehash import Lanes

Execution = Literal["auto", "sparse", "dense"]
Result = TypeVar("Result")

INLINE_SLOTS = 4096
"""Frontiers below this many slots are worked off in the calling thread: waking others would take longer.

From there on, others are woken unless the processors are busy (`graph_stream.crowding`).
"""
DENSE_SHARE = 8
"""In ``auto``, a round is dense if the one before sent at least one message per this many slots."""


class _Workspace:
    """What one thread writes to; grown, never shrunk, contents not kept."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.found = Found(np.empty(0, np.int32), np.empty(0, np.int32), np.zeros(2, np.int64))
        self.visits = Visits(np.empty(0, np.int32), np.empty(0, np.int64))
        self.visited = 0
        self.emitted = 0
        self.emitters = np.empty(0, np.int32)
        self.deltas = np.empty(0, np.int64)
        self.ends = np.empty((0, threads), np.int64)
        self.targets = np.empty((threads, 0), np.int32)
        self.filled = np.zeros(threads, np.int64)

    def fit_slots(self, slots: int) -> None:
        """Make room for every slot, keeping the frontier, the ghosts and the visits found so far."""
        if len(self.found.frontier) < slots:
            self.found = Found(
                widened(self.found.frontier, slots), widened(self.found.ghosts, slots), self.found.counts
            )
            self.visits = Visits(widened(self.visits.slot, slots), widened(self.visits.before, slots))

    def fit_emissions(self, emitters: int) -> None:
        """Make room for a number of emissions."""
        if len(self.emitters) < emitters:
            room = 2 * emitters
            self.emitters = np.empty(room, np.int32)
            self.deltas = np.empty(room, np.int64)
            self.ends = np.empty((room, self.threads), np.int64)

    def fit_targets(self, targets: int) -> None:
        """Make room for a number of targets in each bucket."""
        if self.targets.shape[1] < targets:
            self.targets = np.empty((self.threads, 2 * targets), np.int32)


class Executor:
    """Executes the rounds of one ranking at one member.

    Parameters
    ----------
    rule : Rule
        The parameters.
    threads : int
        Threads to use, at least 1.
    execution : {"auto", "sparse", "dense"}
        How to find the frontier of a round; "auto" decides per round by cost. Never changes the state.
    """

    def __init__(self, rule: Rule, threads: int, execution: Execution) -> None:
        self._rule = rule
        self._execution = execution
        self._workspaces = [_Workspace(threads) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads - 1, "round") if threads > 1 else None
        self._crowding = Crowding()
        self._dense = False

    def touch(self, ranks: Ranks, slots: Slots) -> None:
        """Put slots into the frontier, beside what may be in it."""
        touched = np.empty(len(slots), np.int32)
        count = kernels.touch(ranks, slots, touched)
        for workspace, part in zip(
            self._workspaces, np.array_split(touched[:count], len(self._workspaces)), strict=True
        ):
            workspace.fit_slots(len(ranks.touched))
            found = workspace.found
            begin = int(found.counts[0])
            found.frontier[begin : begin + len(part)] = part
            found.counts[0] = begin + len(part)
        self._dense = self._dense or self._execution == "dense"

    def round(self, vertices: Vertices, storage: Storage, ranks: Ranks, slots: Slots, deltas: Longs) -> int:
        """Evaluate the frontier, then deliver what it emits and some further deltas.

        Parameters
        ----------
        vertices, storage, ranks
            The graph; the state of the ranking.
        slots : ndarray of int32, shape (n,)
            Targets of further deltas: what edge changes give and take.
        deltas : ndarray of int64, shape (n,)
            Those deltas.

        Returns
        -------
        int
            Number of emissions.
        """
        used = int(storage.counters[USED])
        for workspace in self._workspaces:
            workspace.fit_slots(len(vertices.id))
        size = used if self._dense else sum(int(each.found.counts[0]) for each in self._workspaces)
        messages = sum(self._each(lambda thread: self._evaluate(vertices, storage, ranks, thread, used), size))
        self._dense = self._is_dense(messages + len(slots), used)
        self._each(lambda bucket: self._deliver(vertices, ranks, bucket), messages)
        self.deliver(vertices, ranks, slots, deltas)
        return sum(workspace.emitted for workspace in self._workspaces)

    def _is_dense(self, messages: int, slots: int) -> bool:
        if self._execution == "auto":
            return messages * DENSE_SHARE >= slots
        return self._execution == "dense"

    def _evaluate(self, vertices: Vertices, storage: Storage, ranks: Ranks, thread: int, used: int) -> int:
        workspace = self._workspaces[thread]
        count = int(workspace.found.counts[0])
        if self._dense:
            threads = len(self._workspaces)
            first, last = used * thread // threads, used * (thread + 1) // threads
            count = kernels.scan(ranks, first, last, workspace.found.frontier)
        workspace.fit_emissions(count)
        workspace.visited, workspace.emitted, entries = kernels.evaluate(
            vertices,
            ranks,
            self._rule,
            workspace.found.frontier[:count],
            workspace.visits,
            workspace.visited,
            workspace.emitters,
            workspace.deltas,
        )
        workspace.found.counts[0] = 0
        workspace.fit_targets(entries + 1)
        kernels.expand(
            vertices,
            storage,
            workspace.emitters,
            workspace.emitted,
            workspace.targets,
            workspace.ends,
            workspace.filled,
        )
        return int(entries)

    def _deliver(self, vertices: Vertices, ranks: Ranks, bucket: int) -> None:
        for source in self._workspaces:
            kernels.deliver(
                vertices,
                ranks,
                source.targets,
                source.ends,
                bucket,
                source.deltas,
                source.emitted,
                not self._dense,
                self._workspaces[bucket].found,
            )

    def deliver(self, vertices: Vertices, ranks: Ranks, slots: Slots, deltas: Longs) -> None:
        """Add deltas to the influence of slots; those become part of the next round's frontier."""
        self._workspaces[0].fit_slots(len(vertices.id))
        kernels.deliver_each(vertices, ranks, slots, deltas, not self._dense, self._workspaces[0].found)

    def take_ghosts(self, vertices: Vertices, ranks: Ranks) -> tuple[Longs, Longs]:
        """Return external ids and sums of what was delivered to ghosts since the last call, and zero them."""
        slots = np.concatenate([each.found.ghosts[: each.found.counts[1]] for each in self._workspaces])
        for workspace in self._workspaces:
            workspace.found.counts[1] = 0
        deltas = ranks.influence[slots]
        ranks.influence[slots] = 0
        ranks.touched[slots] = False
        changed = deltas != 0
        return vertices.id[slots[changed]], deltas[changed]

    def forget(self, ranks: Ranks) -> None:
        """Empty the frontier."""
        ranks.touched[:] = False
        for workspace in self._workspaces:
            workspace.found.counts[:] = 0

    def seen(self, vertices: Vertices, ranks: Ranks, *, capped: bool) -> Slots:
        """Return the slots whose influence may have changed since the last `settle`, each once.

        That is, all that were looked at: whoever's influence changes is in the next round's frontier. Where the
        rounds were ``capped``, also all that still wait in it.
        """
        slots = [workspace.visits.slot[: workspace.visited] for workspace in self._workspaces]
        if capped:
            waiting = ranks.touched & vertices.owned[: len(ranks.touched)] & ~ranks.visited
            slots.append(np.flatnonzero(waiting).astype(np.int32))
        return np.concatenate(slots)

    def settle(
        self, vertices: Vertices, ranks: Ranks, lags: npt.NDArray[np.int64], lanes: Lanes
    ) -> tuple[Longs, Longs]:
        """Close an epoch: bring lag counts and lane sums up to date.

        Returns
        -------
        ids, contributions : ndarray of int64, shape (n,)
            Vertices whose contribution changed in the epoch, in no particular order.
        """
        visited = sum(workspace.visited for workspace in self._workspaces)
        parts = self._each(lambda thread: self._settle(vertices, ranks, thread), visited)
        for _, _, some_lags, some_lanes in parts:
            lags += some_lags
            lanes += some_lanes
        lags[:, 0] = 0
        if self._pool is not None:
            self._crowding.look()
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _settle(
        self, vertices: Vertices, ranks: Ranks, thread: int
    ) -> tuple[Longs, Longs, npt.NDArray[np.int64], Lanes]:
        workspace = self._workspaces[thread]
        lags = np.zeros((2, BUCKETS), np.int64)
        lanes = np.zeros(2, np.uint64)
        changed = np.empty(workspace.visited, np.int64)
        contribution = np.empty(workspace.visited, np.int64)
        count = kernels.settle(
            vertices, ranks, self._rule, workspace.visits, workspace.visited, lags, lanes, changed, contribution
        )
        workspace.visited = 0
        return changed[:count], contribution[:count], lags, lanes

    def _each(self, work: Callable[[int], Result], size: int) -> list[Result]:
        """Do one share of some work per thread; return when all are done (the barrier)."""
        shares = range(len(self._workspaces))
        if self._pool is None or size < INLINE_SLOTS or not self._crowding.shares:
            return [work(share) for share in shares]
        others = [self._pool.submit(work, share) for share in shares[1:]]
        return [work(0), *(other.result() for other in others)]
