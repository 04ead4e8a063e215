"""What must hold between epochs, recomputed from edges and contributions alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graph_stream import idtable, kernels, records, rows, tombstones, wheel
from graph_stream.adjacency import EDGES, LIVE, MAX_DEGREE, OWNED, USED, Longs, Storage, Vertices
from graph_stream.kernels import Rule
from graph_stream.ranks import Ranks
from graph_stream.records import Adjacency
from graph_stream.statehash import Lanes, tombstone_lanes
from graph_stream.wheel import Wheel

_NO_TIMES = np.empty(0, np.int64)


class InvariantViolated(Exception):
    """The state of a member contradicts itself, or that of another member."""


def rank_violations(
    vertices: Vertices,
    storage: Storage,
    ranks: Ranks,
    rule: Rule,
    influence: Longs,
    lags: Longs,
    lanes: Lanes,
) -> list[str]:
    """Compare everything that is kept of a ranking with what edges and contributions say.

    Parameters
    ----------
    vertices, storage, ranks, rule
        The member's graph, the state of the ranking and its parameters.
    influence : ndarray of int64, shape (capacity,)
        Per slot, the sum over the followers at all members; 0 at ghosts.
    lags : ndarray of int64, shape (2, BUCKETS)
        The kept counts of lags.
    lanes : ndarray of uint64, shape (2,)
        The kept lane sums.

    Returns
    -------
    list of str
        One text per difference; empty if all is well.
    """
    used = int(storage.counters[USED])
    found: list[str] = []
    live = vertices.degree[:used] >= 0
    _compare(found, "influence", ranks.influence[:used][live], influence[:used][live])
    plus, minus = np.zeros_like(ranks.lag_plus), np.zeros_like(ranks.lag_minus)
    counted, summed = np.zeros_like(lags), np.zeros_like(lanes)
    kernels.recount(vertices, storage, ranks, rule, plus, minus, counted, summed)
    counted[:, 0] = 0
    _compare(found, "bucket of positive lag", ranks.lag_plus[:used][live], plus[:used][live])
    _compare(found, "bucket of negative lag", ranks.lag_minus[:used][live], minus[:used][live])
    _compare(found, "count of lags", lags, counted)
    _compare(found, "lane sum of the contributions", lanes, summed)
    idle = vertices.degree[:used] <= 0
    _compare(found, "contribution of a slot that follows no one", np.count_nonzero(ranks.contribution[:used][idle]), 0)
    free = np.concatenate([np.flatnonzero(~live), np.arange(used, len(ranks.influence))])
    _compare(found, "state of free slots", sum(np.count_nonzero(array[free]) for array in ranks), 0)
    _compare(found, "visited slots", np.count_nonzero(ranks.visited), 0)
    return found


def graph_violations(adjacency: Adjacency, followers: Longs, lanes: Lanes) -> list[str]:
    """Compare everything that is kept of the graph with what its edges say.

    Parameters
    ----------
    adjacency : Adjacency
        The member's graph.
    followers : ndarray of int64, shape (capacity,)
        Per slot, followers at all members; at ghosts, here.
    lanes : ndarray of uint64, shape (2,)
        The kept lane sums of edges and tombstones.

    Returns
    -------
    list of str
        One text per difference; empty if all is well.
    """
    found: list[str] = []
    vertices, storage = adjacency.vertices, adjacency.storage
    counters = storage.counters
    used = int(counters[USED])
    slots = np.flatnonzero(vertices.degree[:used] >= 0)
    looked_up = np.empty(len(slots), np.int32)
    records.find_all(vertices, storage, vertices.id[slots], looked_up)
    _compare(found, "slot in the id table", looked_up, slots)
    _compare(found, "entries of the id table", idtable.live_entries(storage.table), len(slots))
    follower = np.empty(counters[EDGES], np.int32)
    followed = np.empty(counters[EDGES], np.int32)
    _compare(found, "number of edges", rows.edges(vertices, storage, follower, followed, _NO_TIMES), counters[EDGES])
    pairs = np.unique(follower.astype(np.int64) << 32 | followed)
    _compare(found, "number of distinct edges", len(pairs), counters[EDGES])
    degree = np.bincount(follower, minlength=used)
    _compare(found, "number followed", vertices.degree[slots], degree[slots])
    owned = vertices.owned[slots]
    _compare(found, "live slots", len(slots), counters[LIVE])
    _compare(found, "owned vertices", np.count_nonzero(owned), counters[OWNED])
    degrees = np.bincount(degree[slots[owned]], minlength=len(storage.degrees))
    _compare(found, "count of degrees", storage.degrees, degrees)
    _compare(found, "largest degree", counters[MAX_DEGREE], degree.max(initial=0))
    lonely = (vertices.degree[slots] == 0) & (vertices.followers[slots] == 0)
    _compare(found, "vertices without an edge", np.count_nonzero(lonely), 0)
    ghosts = slots[~owned]
    _compare(found, "number followed by a ghost", vertices.degree[ghosts], np.zeros(len(ghosts)))
    live = vertices.degree[:used] >= 0
    _compare(found, "number of followers", vertices.followers[:used][live], followers[:used][live])
    summed = np.zeros_like(lanes)
    kernels.sum_edges(vertices, storage, summed)
    for src, dst, time in zip(*adjacency.buried(), strict=True):
        summed += np.array(tombstone_lanes(src, dst, time), np.uint64)
    _compare(found, "lane sum of the edges", lanes, summed)
    return found


def time_violations(adjacency: Adjacency) -> list[str]:
    """Compare what event time keeps with the watermark, with the times of edges, and with itself.

    Returns
    -------
    list of str
        One text per difference; empty if all is well, or without event time.
    """
    found: list[str] = []
    if adjacency.event_time is None:
        return found
    follower, followed, time = adjacency.edge_slots()
    _compare(found, "expired edges", np.count_nonzero(time < adjacency.event_time.expiry(adjacency.watermark)), 0)
    if adjacency.event_time.window is not None:
        oldest = np.full(len(adjacency.vertices.id), np.iinfo(np.int64).max)
        np.minimum.at(oldest, follower, time)
        filed = _filed(found, adjacency.oldest)
        _compare(found, "vertices filed by their oldest edge", filed, np.unique(follower))
        _compare(found, "edges older than filed", np.count_nonzero(adjacency.oldest.due[filed] > oldest[filed]), 0)
    buried = adjacency.tombstones
    src, dst, buried_at = adjacency.buried()
    horizon = adjacency.event_time.horizon(adjacency.watermark)
    _compare(found, "tombstones past the horizon", np.count_nonzero(buried_at < horizon), 0)
    _compare(found, "number of tombstones", buried.counters[tombstones.LIVE], len(_filed(found, buried.wheel)))
    found_at = [tombstones.find(buried, *pair) for pair in zip(src, dst, strict=True)]
    _compare(found, "tombstones found by their pair", sorted(found_at), _filed(found, buried.wheel))
    ids = adjacency.vertices.id
    both = set(zip(ids[follower].tolist(), ids[followed].tolist(), strict=True)) & set(
        zip(src.tolist(), dst.tolist(), strict=True)
    )
    _compare(found, "edges with a tombstone", len(both), 0)
    return found


def _filed(found: list[str], kept: Wheel) -> Longs:
    """Return the entries of a wheel as its chains have them, in order; each must be where its due time says."""
    entries = []
    for bucket, head in enumerate(kept.heads.tolist()):
        before, entry = -1, head
        while entry >= 0:
            _compare(found, "chain of an entry", (kept.due[entry] // kept.width) % wheel.BUCKETS, bucket)
            _compare(found, "one before in the chain", kept.previous[entry], before)
            entries.append(entry)
            before, entry = entry, int(kept.following[entry])
    _compare(found, "filed entries", np.flatnonzero(kept.following != wheel.UNFILED), sorted(entries))
    return np.array(sorted(entries), np.int64)


def _compare(found: list[str], what: str, kept: npt.ArrayLike, true: npt.ArrayLike) -> None:
    kept_array, true_array = np.atleast_1d(kept), np.atleast_1d(true)
    if kept_array.shape != true_array.shape:
        found.append(f"{what}: {kept_array.shape} kept, {true_array.shape} true")
        return
    wrong = np.argwhere(kept_array != true_array)
    if len(wrong):
        first = tuple(wrong[0])
        example = f"{kept_array[first]} kept, {true_array[first]} true"
        found.append(f"{what}: {len(wrong)} differ, first at {wrong[0].tolist()}: {example}")
