"""The fingerprint of a state: an order-free sum of hashes over its edges and contributions.

Two lanes of 64 bits, each the sum modulo 2**64 of one hash per edge ``(follower, followed)`` and one per
vertex with a contribution ``(vertex, c)``, by external ids. With event time an edge is hashed with its time, and so
is a tombstone; the watermark is hashed with the sums. A sum can be kept incrementally, split over
members in any way and added up again (the additive multiset hash of Bellare and Micciancio, 1997, at a width
meant against accidents, not adversaries).

The compiled functions are part of the format version: see :func:`graph_stream.ownership.mix64`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from graph_stream.algorithms import Parameters
from graph_stream.compiled import Int, compiled
from graph_stream.ownership import mix64

Lanes = npt.NDArray[np.uint64]
"""Two lane sums, modulo 2**64."""

# Fractional bits of the square roots of 2, 3, 5 and 7: constants with nothing chosen in them.
_EDGE_SEEDS = (0x6A09E667F3BCC908, 0xBB67AE8584CAA73B)
_CONTRIBUTION_SEEDS = (0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1)
# The same of 11, 13, 17 and 19.
_TIME_SEEDS = (0x510E527FADE682D1, 0x9B05688C2B3E6C1F)
_TOMBSTONE_SEEDS = (0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179)
_LANE_MASK = (1 << 64) - 1


@compiled
def _pair(seed: np.uint64, first: Int, second: Int) -> np.uint64:
    return mix64(mix64(np.uint64(first) + seed) + mix64(np.uint64(second) ^ seed))


@compiled
def _stamped(seed: np.uint64, pair: np.uint64, time: Int) -> np.uint64:
    return mix64(pair + mix64(np.uint64(time) ^ seed))


@compiled
def edge_lanes(follower: Int, followed: Int) -> tuple[np.uint64, np.uint64]:
    """Return the two lane values of an edge."""
    return (
        _pair(np.uint64(_EDGE_SEEDS[0]), follower, followed),
        _pair(np.uint64(_EDGE_SEEDS[1]), follower, followed),
    )


@compiled
def timed_edge_lanes(follower: Int, followed: Int, time: Int) -> tuple[np.uint64, np.uint64]:
    """Return the two lane values of an edge with its time."""
    low, high = edge_lanes(follower, followed)
    return _stamped(np.uint64(_TIME_SEEDS[0]), low, time), _stamped(np.uint64(_TIME_SEEDS[1]), high, time)


@compiled
def tombstone_lanes(follower: Int, followed: Int, time: Int) -> tuple[np.uint64, np.uint64]:
    """Return the two lane values of a tombstone."""
    low, high = edge_lanes(follower, followed)
    return _stamped(np.uint64(_TOMBSTONE_SEEDS[0]), low, time), _stamped(np.uint64(_TOMBSTONE_SEEDS[1]), high, time)


@compiled
def contribution_lanes(vertex: np.int64, contribution: np.int64) -> tuple[np.uint64, np.uint64]:
    """Return the two lane values of a vertex's contribution; one of 0 is absent and counts nothing."""
    if contribution == 0:
        return np.uint64(0), np.uint64(0)
    return (
        _pair(np.uint64(_CONTRIBUTION_SEEDS[0]), vertex, contribution),
        _pair(np.uint64(_CONTRIBUTION_SEEDS[1]), vertex, contribution),
    )


def state_hash(parameters: Parameters, lanes: Iterable[tuple[int, int]], watermark: int | None = None) -> str:
    """Return the ``state_hash`` of a whole state.

    Parameters
    ----------
    parameters : Parameters
        What the state was computed with.
    lanes : iterable of (int, int)
        The partial lane sums of all members, in any order.
    watermark : int, optional
        With event time, in microseconds.

    Returns
    -------
    str
        32 lower-case hex digits.
    """
    low = high = 0
    for part in lanes:
        low += part[0]
        high += part[1]
    sums = (low & _LANE_MASK).to_bytes(8, "little") + (high & _LANE_MASK).to_bytes(8, "little")
    moment = b"" if watermark is None else watermark.to_bytes(8, "little", signed=True)
    return hashlib.blake2b(parameters.digest() + sums + moment, digest_size=16).hexdigest()
