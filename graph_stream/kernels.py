"""The compiled steps of a round, and of closing an epoch.

:func:`touch`, :func:`scan`, :func:`evaluate`, :func:`expand` and :func:`deliver` make a round; :func:`settle`
brings certificate and hash up to date after the last one. None allocates, none knows of threads or other
members.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream.adjacency import USED, Longs, Slots, Storage, Vertices
from graph_stream.algorithms import Parameters, Weights, share
from graph_stream.certificate import bucket_of, tolerance_limit
from graph_stream.compiled import Int, compiled, prefetch
from graph_stream.ownership import mix64
from graph_stream.ranks import Ranks
from graph_stream.rows import row_end
from graph_stream.statehash import Lanes, contribution_lanes, edge_lanes, timed_edge_lanes

LAG_ROUNDING = 2.0**-50
"""A lag computed in float64 is off by less than this share of what is due plus what was done: fewer than eight
roundings of ``2**-53`` each."""

AHEAD = 32
"""How long before its turn, counted in turns, what a step needs of memory is fetched."""


class Rule(NamedTuple):
    """The parameters as the kernels need them."""

    probability: float
    threshold: float
    """Tolerance in fixed point."""
    scale: float
    limit: float
    """Largest lag published for a vertex within the tolerance."""
    limit_bucket: int
    weighted: npt.NDArray[np.int64]
    """Ids of vertices whose base is not 1: open addressing; a power of two long, or empty."""
    weights: npt.NDArray[np.float64]
    """Their bases; 0 where the table is empty."""


def rule_of(parameters: Parameters) -> Rule:
    """Return the kernels' view of the parameters."""
    limit = tolerance_limit(parameters.tolerance)
    return Rule(
        float(parameters.factor),
        parameters.tolerance * parameters.scale,
        parameters.scale,
        limit,
        int(bucket_of(limit)),
        *_table_of(parameters.weights),
    )


def _table_of(weights: Weights) -> tuple[Longs, npt.NDArray[np.float64]]:
    size = 1 << (2 * len(weights.vertex)).bit_length() if len(weights.vertex) else 0
    ids, bases = np.zeros(size, np.int64), np.zeros(size, np.float64)
    for vertex, weight in zip(weights.vertex.tolist(), weights.weight.tolist(), strict=True):
        place = _place_of(vertex, size)
        while bases[place] != 0:
            place = (place + 1) & (size - 1)
        ids[place], bases[place] = vertex, weight
    return ids, bases


@compiled
def _place_of(vertex: Int, size: Int) -> Int:
    return np.int64(mix64(np.uint64(vertex)) & np.uint64(size - 1))


@compiled
def base_of(rule: Rule, vertex: Int) -> float:
    """Return ``b`` of a vertex, what it has to give away without any follower."""
    size = len(rule.weights)
    if size == 0:
        return 1.0
    place = _place_of(vertex, size)
    while rule.weights[place] != 0.0:
        if rule.weighted[place] == vertex:
            return float(rule.weights[place])
        place = (place + 1) & (size - 1)
    return 1.0


@compiled
def touch(ranks: Ranks, slots: Slots, frontier: Slots) -> Int:
    """Write each of the slots that is not touched yet to the frontier, touch it, and return how many."""
    count = 0
    for i in range(len(slots)):
        if not ranks.touched[slots[i]]:
            ranks.touched[slots[i]] = True
            frontier[count] = slots[i]
            count += 1
    return count


@compiled
def scan(ranks: Ranks, first: Int, last: Int, frontier: Slots) -> int:
    """Write the touched slots in ``first .. last - 1`` to the frontier and return how many."""
    count = 0
    for slot in range(first, last):
        if ranks.touched[slot]:
            frontier[count] = slot
            count += 1
    return count


class Visits(NamedTuple):
    """Slots looked at in this epoch, and their contribution before it; shape (capacity,) each."""

    slot: Slots
    before: Longs


@compiled
def evaluate(
    vertices: Vertices,
    ranks: Ranks,
    rule: Rule,
    frontier: Slots,
    visits: Visits,
    visited: int,
    emitters: Slots,
    deltas: Longs,
) -> tuple[int, int, int]:
    """Apply the rule to the frontier, reading influence only, and list who emits how much.

    Returns
    -------
    visited, emitted, entries : int
        Visits so far; emissions of this round; an upper bound of the targets they have.
    """
    emitted = 0
    entries = 0
    for i in range(len(frontier)):
        coming = frontier[min(i + AHEAD, len(frontier) - 1)]
        prefetch(ranks.contribution, coming)
        prefetch(ranks.visited, coming)
        prefetch(vertices.degree, coming)
        prefetch(ranks.influence, coming)
        slot = frontier[i]
        ranks.touched[slot] = False
        old = ranks.contribution[slot]
        if not ranks.visited[slot]:
            ranks.visited[slot] = True
            visits.slot[visited] = slot
            visits.before[visited] = old
            visited += 1
        degree = np.int64(vertices.degree[slot])
        if degree <= 0:
            # Whom it followed got what it had emitted back, edge by edge.
            ranks.contribution[slot] = 0
            continue
        base = base_of(rule, vertices.id[slot])
        new = share(degree, old, ranks.influence[slot], base, rule.probability, rule.threshold, rule.scale)
        if new != old:
            ranks.contribution[slot] = new
            emitters[emitted] = slot
            deltas[emitted] = new - old
            emitted += 1
            entries += row_end(vertices, slot) - vertices.row[slot]
    return visited, emitted, entries


@compiled
def bucket_of_slot(slot: Int, buckets: Int) -> Int:
    """Return the bucket that takes the deltas of a slot, the same for 64 slots in a row (a line of flags)."""
    mixed = (np.uint64(slot >> 6) * np.uint64(0x9E3779B1)) & np.uint64(0xFFFFFFFF)
    return np.int64((mixed * np.uint64(buckets)) >> np.uint64(32))


@compiled
def expand(
    vertices: Vertices,
    storage: Storage,
    emitters: Slots,
    emitted: Int,
    targets: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int64],
    filled: Longs,
) -> None:
    """Write the targets of the emissions into buckets.

    Parameters
    ----------
    vertices, storage
        The graph.
    emitters : ndarray of int32
        Slots, of which the first ``emitted`` emit.
    emitted : int
        How many emit.
    targets : ndarray of int32, shape (buckets, room)
        Receives the targets in order of emission; room for the bound :func:`evaluate` returned, and one.
    ends : ndarray of int64, shape (at least emitted, buckets)
        Receives where the targets of an emission end in each bucket.
    filled : ndarray of int64, shape (buckets,)
        Scratch.
    """
    buckets = len(targets)
    filled[:] = 0
    for i in range(emitted):
        prefetch(vertices.row, emitters[min(i + 2 * AHEAD, emitted - 1)])
        prefetch(storage.arena, vertices.row[emitters[min(i + AHEAD, emitted - 1)]])
        slot = emitters[i]
        for place in range(vertices.row[slot], row_end(vertices, slot)):
            # An empty place is written and not counted: no branch to mispredict.
            target = np.int64(storage.arena[place])
            bucket = bucket_of_slot(target, buckets) if buckets > 1 else np.int64(0)
            targets[bucket, filled[bucket]] = target
            filled[bucket] += target >= 0
        for full in range(buckets):
            ends[i, full] = filled[full]


class Found(NamedTuple):
    """Slots touched by deliveries."""

    frontier: Slots
    """Owned ones, for the next round; shape (capacity,)."""
    ghosts: Slots
    """Others, for the exchange; shape (capacity,)."""
    counts: Longs
    """Filled length of ``frontier``, filled length of ``ghosts``."""


@compiled
def _receive(vertices: Vertices, ranks: Ranks, slot: Int, delta: Int, listing: bool, found: Found) -> None:
    ranks.influence[slot] += delta
    if not ranks.touched[slot]:
        ranks.touched[slot] = True
        if not vertices.owned[slot]:
            found.ghosts[found.counts[1]] = slot
            found.counts[1] += 1
        elif listing:
            found.frontier[found.counts[0]] = slot
            found.counts[0] += 1


@compiled
def deliver(
    vertices: Vertices,
    ranks: Ranks,
    targets: npt.NDArray[np.int32],
    ends: npt.NDArray[np.int64],
    bucket: Int,
    deltas: Longs,
    emitted: Int,
    listing: bool,
    found: Found,
) -> None:
    """Add one bucket of emissions to the influence of their targets, and touch those.

    Parameters
    ----------
    vertices, ranks
        The graph's vertices; the state of the ranking.
    targets, ends
        As :func:`expand` wrote them.
    bucket : int
        The bucket to take.
    deltas : ndarray of int64
        Amount of each emission.
    emitted : int
        Number of emissions.
    listing : bool
        Whether touched owned slots are listed in ``found`` (the next round is sparse) or left to
        :func:`scan`.
    found : Found
        Receives the touched slots.
    """
    place = 0
    for i in range(emitted):
        delta = deltas[i]
        end = ends[i, bucket]
        while place < end:
            # Behind the last target there is anything.
            coming = targets[bucket, min(place + AHEAD, targets.shape[1] - 1)]
            prefetch(ranks.influence, coming)
            prefetch(ranks.touched, coming)
            prefetch(vertices.owned, coming)
            _receive(vertices, ranks, targets[bucket, place], delta, listing, found)
            place += 1


@compiled
def deliver_each(vertices: Vertices, ranks: Ranks, slots: Slots, deltas: Longs, listing: bool, found: Found) -> None:
    """Add one amount to each slot, as :func:`deliver` does for emissions."""
    for i in range(len(slots)):
        if deltas[i] != 0:
            _receive(vertices, ranks, slots[i], deltas[i], listing, found)


@compiled
def _lag_buckets(degree: Int, contribution: Int, influence: Int, base: float, rule: Rule) -> tuple[Int, Int]:
    if degree <= 0:
        return 0, 0
    unit = base * rule.scale
    due = unit + rule.probability * np.float64(influence)
    done = np.float64(degree) * np.float64(contribution)
    lag = (due - done) / unit
    slack = (due + done) / unit * LAG_ROUNDING
    return _lag_bucket(lag + slack, rule), _lag_bucket(slack - lag, rule)


@compiled
def _lag_bucket(lag: float, rule: Rule) -> Int:
    bucket = bucket_of(lag)
    return bucket + 1 if bucket == rule.limit_bucket and lag > rule.limit else bucket


@compiled
def settle(
    vertices: Vertices,
    ranks: Ranks,
    rule: Rule,
    visits: Visits,
    visited: Int,
    lags: npt.NDArray[np.int64],
    lanes: Lanes,
    changed: Longs,
    contribution: Longs,
) -> Int:
    """Bring certificate and hash up to date for the slots visited in this epoch.

    Parameters
    ----------
    vertices, ranks, rule
        The graph's vertices; the state of the ranking; its parameters.
    visits : Visits
        Of which the first ``visited`` count.
    visited : int
        Number of visits.
    lags : ndarray of int64, shape (2, BUCKETS)
        Counts of positive and negative lags, to be changed.
    lanes : ndarray of uint64, shape (2,)
        Lane sums, to be changed.
    changed, contribution : ndarray of int64, shape (at least visited,)
        Receive the external ids and new contributions of the vertices whose contribution changed.

    Returns
    -------
    int
        How many contributions changed.
    """
    count = 0
    for i in range(visited):
        coming = visits.slot[min(i + AHEAD, visited - 1)]
        prefetch(ranks.visited, coming)
        prefetch(ranks.contribution, coming)
        prefetch(ranks.influence, coming)
        prefetch(ranks.lag_plus, coming)
        prefetch(ranks.lag_minus, coming)
        prefetch(vertices.degree, coming)
        prefetch(vertices.id, coming)
        slot = visits.slot[i]
        ranks.visited[slot] = False
        after = ranks.contribution[slot]
        plus, minus = _lag_buckets(
            vertices.degree[slot], after, ranks.influence[slot], base_of(rule, vertices.id[slot]), rule
        )
        lags[0, ranks.lag_plus[slot]] -= 1
        lags[1, ranks.lag_minus[slot]] -= 1
        lags[0, plus] += 1
        lags[1, minus] += 1
        ranks.lag_plus[slot] = plus
        ranks.lag_minus[slot] = minus
        if after != visits.before[i]:
            low, high = contribution_lanes(vertices.id[slot], after)
            old_low, old_high = contribution_lanes(vertices.id[slot], visits.before[i])
            lanes[0] += low - old_low
            lanes[1] += high - old_high
            changed[count] = vertices.id[slot]
            contribution[count] = after
            count += 1
    return count


@compiled
def spread(vertices: Vertices, storage: Storage, contribution: Longs, influence: Longs) -> None:
    """Add every vertex's contribution to ``influence`` at the slots it follows: X from scratch."""
    for slot in range(storage.counters[USED]):
        if vertices.degree[slot] > 0:
            for place in range(vertices.row[slot], row_end(vertices, slot)):
                if storage.arena[place] >= 0:
                    influence[storage.arena[place]] += contribution[slot]


@compiled
def recount(
    vertices: Vertices,
    storage: Storage,
    ranks: Ranks,
    rule: Rule,
    plus: npt.NDArray[np.uint16],
    minus: npt.NDArray[np.uint16],
    lags: npt.NDArray[np.int64],
    lanes: Lanes,
) -> None:
    """Compute lag buckets of all slots, their counts and the lane sums of contributions, into zeroed arrays."""
    for slot in range(storage.counters[USED]):
        if not vertices.owned[slot] or vertices.degree[slot] < 0:
            continue
        contribution = ranks.contribution[slot]
        base = base_of(rule, vertices.id[slot])
        above, below = _lag_buckets(vertices.degree[slot], contribution, ranks.influence[slot], base, rule)
        plus[slot] = above
        minus[slot] = below
        lags[0, above] += 1
        lags[1, below] += 1
        low, high = contribution_lanes(vertices.id[slot], contribution)
        lanes[0] += low
        lanes[1] += high


@compiled
def sum_edges(vertices: Vertices, storage: Storage, lanes: Lanes) -> None:
    """Add the lanes of all edges, with their times if they have such, to the sums."""
    for slot in range(storage.counters[USED]):
        if vertices.degree[slot] > 0:
            for place in range(vertices.row[slot], row_end(vertices, slot)):
                if storage.arena[place] >= 0:
                    follower, followed = vertices.id[slot], vertices.id[storage.arena[place]]
                    if len(storage.times) > 0:
                        low, high = timed_edge_lanes(follower, followed, storage.times[place])
                    else:
                        low, high = edge_lanes(follower, followed)
                    lanes[0] += low
                    lanes[1] += high


@compiled
def overdue(vertices: Vertices, storage: Storage, ranks: Ranks, rule: Rule, slots: Slots) -> Int:
    """Write the slots that would emit now, and return how many; none after an epoch whose rounds ended."""
    count = 0
    for slot in range(storage.counters[USED]):
        if vertices.owned[slot] and vertices.degree[slot] > 0:
            old = ranks.contribution[slot]
            new = share(
                np.int64(vertices.degree[slot]),
                old,
                ranks.influence[slot],
                base_of(rule, vertices.id[slot]),
                rule.probability,
                rule.threshold,
                rule.scale,
            )
            if new != old:
                slots[count] = slot
                count += 1
    return count
