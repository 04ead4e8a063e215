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
from graph_stream.algorithms import Parameters, share
from graph_stream.certificate import bucket_of, tolerance_limit
from graph_stream.compiled import Int, compiled
from graph_stream.rows import row_end
from graph_stream.statehash import Lanes, contribution_lanes, edge_lanes

LAG_ROUNDING = 2.0**-50
"""A lag computed in float64 is off by less than this share of what is due plus what was done: at most five
roundings of ``2**-53`` each."""


class Rule(NamedTuple):
    """The parameters as the kernels need them."""

    probability: float
    threshold: float
    """Tolerance in fixed point."""
    scale: float
    limit: float
    """Largest lag published for a vertex within the tolerance."""
    limit_bucket: int


def rule_of(parameters: Parameters) -> Rule:
    """Return the kernels' view of the parameters."""
    limit = tolerance_limit(parameters.tolerance)
    return Rule(
        float(parameters.retweet_probability),
        parameters.tolerance * parameters.scale,
        parameters.scale,
        limit,
        int(bucket_of(limit)),
    )


@compiled
def touch(vertices: Vertices, slots: Slots, frontier: Slots) -> Int:
    """Write each of the slots that is not touched yet to the frontier, touch it, and return how many."""
    count = 0
    for i in range(len(slots)):
        if not vertices.touched[slots[i]]:
            vertices.touched[slots[i]] = True
            frontier[count] = slots[i]
            count += 1
    return count


@compiled
def scan(vertices: Vertices, first: Int, last: Int, frontier: Slots) -> int:
    """Write the touched slots in ``first .. last - 1`` to the frontier and return how many."""
    count = 0
    for slot in range(first, last):
        if vertices.touched[slot]:
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
        slot = frontier[i]
        vertices.touched[slot] = False
        old = vertices.contribution[slot]
        if not vertices.visited[slot]:
            vertices.visited[slot] = True
            visits.slot[visited] = slot
            visits.before[visited] = old
            visited += 1
        degree = np.int64(vertices.degree[slot])
        if degree <= 0:
            # Whom it followed got what it had emitted back, edge by edge.
            vertices.contribution[slot] = 0
            continue
        new = share(degree, old, vertices.influence[slot], rule.probability, rule.threshold, rule.scale)
        if new != old:
            vertices.contribution[slot] = new
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
def _receive(vertices: Vertices, slot: Int, delta: Int, listing: bool, found: Found) -> None:
    vertices.influence[slot] += delta
    if not vertices.touched[slot]:
        vertices.touched[slot] = True
        if not vertices.owned[slot]:
            found.ghosts[found.counts[1]] = slot
            found.counts[1] += 1
        elif listing:
            found.frontier[found.counts[0]] = slot
            found.counts[0] += 1


@compiled
def deliver(
    vertices: Vertices,
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
    vertices
        The graph's vertices.
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
        while place < ends[i, bucket]:
            _receive(vertices, targets[bucket, place], delta, listing, found)
            place += 1


@compiled
def deliver_each(vertices: Vertices, slots: Slots, deltas: Longs, listing: bool, found: Found) -> None:
    """Add one amount to each slot, as :func:`deliver` does for emissions."""
    for i in range(len(slots)):
        if deltas[i] != 0:
            _receive(vertices, slots[i], deltas[i], listing, found)


@compiled
def _lag_buckets(degree: Int, contribution: Int, influence: Int, rule: Rule) -> tuple[Int, Int]:
    if degree <= 0:
        return 0, 0
    due = rule.scale + rule.probability * np.float64(influence)
    done = np.float64(degree) * np.float64(contribution)
    lag = (due - done) / rule.scale
    slack = (due + done) / rule.scale * LAG_ROUNDING
    return _lag_bucket(lag + slack, rule), _lag_bucket(slack - lag, rule)


@compiled
def _lag_bucket(lag: float, rule: Rule) -> Int:
    bucket = bucket_of(lag)
    return bucket + 1 if bucket == rule.limit_bucket and lag > rule.limit else bucket


@compiled
def settle(
    vertices: Vertices,
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
    vertices, rule
        The graph's vertices; the parameters.
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
        slot = visits.slot[i]
        vertices.visited[slot] = False
        after = vertices.contribution[slot]
        plus, minus = _lag_buckets(vertices.degree[slot], after, vertices.influence[slot], rule)
        lags[0, vertices.lag_plus[slot]] -= 1
        lags[1, vertices.lag_minus[slot]] -= 1
        lags[0, plus] += 1
        lags[1, minus] += 1
        vertices.lag_plus[slot] = plus
        vertices.lag_minus[slot] = minus
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
def spread(vertices: Vertices, storage: Storage, influence: Longs) -> None:
    """Add every vertex's contribution to ``influence`` at the slots it follows: X from scratch."""
    for slot in range(storage.counters[USED]):
        if vertices.degree[slot] > 0:
            for place in range(vertices.row[slot], row_end(vertices, slot)):
                if storage.arena[place] >= 0:
                    influence[storage.arena[place]] += vertices.contribution[slot]


@compiled
def recount(
    vertices: Vertices,
    storage: Storage,
    rule: Rule,
    plus: npt.NDArray[np.uint16],
    minus: npt.NDArray[np.uint16],
    lags: npt.NDArray[np.int64],
    lanes: Lanes,
) -> None:
    """Compute lag buckets of all slots, their counts and the lane sums from scratch, into zeroed arrays."""
    for slot in range(storage.counters[USED]):
        if not vertices.owned[slot] or vertices.degree[slot] < 0:
            continue
        contribution = vertices.contribution[slot]
        above, below = _lag_buckets(vertices.degree[slot], contribution, vertices.influence[slot], rule)
        plus[slot] = above
        minus[slot] = below
        lags[0, above] += 1
        lags[1, below] += 1
        low, high = contribution_lanes(vertices.id[slot], contribution)
        lanes[0] += low
        lanes[1] += high
        for place in range(vertices.row[slot], row_end(vertices, slot)):
            if storage.arena[place] >= 0:
                low, high = edge_lanes(vertices.id[slot], vertices.id[storage.arena[place]])
                lanes[0] += low
                lanes[1] += high


@compiled
def overdue(vertices: Vertices, storage: Storage, rule: Rule, slots: Slots) -> Int:
    """Write the slots that would emit now, and return how many; none after an epoch whose rounds ended."""
    count = 0
    for slot in range(storage.counters[USED]):
        if vertices.owned[slot] and vertices.degree[slot] > 0:
            old = vertices.contribution[slot]
            new = share(
                np.int64(vertices.degree[slot]),
                old,
                vertices.influence[slot],
                rule.probability,
                rule.threshold,
                rule.scale,
            )
            if new != old:
                slots[count] = slot
                count += 1
    return count
