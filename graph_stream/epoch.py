"""What an epoch did: per member, and over all members."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from graph_stream.algorithms import Parameters
from graph_stream.certificate import check_capacity, rounding_limited
from graph_stream.statehash import state_hash


@dataclass(frozen=True)
class EpochResult:
    """What one member did in an epoch, and where it stands after it."""

    epoch: int
    inserted: int
    """Edges present after the epoch and not before."""
    deleted: int
    """Edges present before the epoch and not after, also expired ones."""
    unchanged: int
    """Other records: repeated inserts, deletes of absent edges, what cancelled out within the epoch; with event time
    also what is older than what is known of the edge."""
    self_loops: int
    """Records dropped because follower and followed are the same."""
    rounds: int
    """Rounds run, the last one of which did nothing (unless ``capped``)."""
    emissions: int
    """How often a vertex changed its contribution."""
    capped: bool
    """Whether the rounds were cut off at ``ROUND_CAP``."""
    e_plus: float
    """Proven bound of all positive lags."""
    e_minus: float
    """Proven bound of all negative lags."""
    lane_low: int
    """First lane sum of the state hash, modulo 2**64."""
    lane_high: int
    """Second lane sum."""
    vertices: int
    edges: int
    max_degree: int
    """Most vertices followed by one."""
    # Newer than the first release, whose results may yet be joined by this one.
    expired: int = field(default=0, kw_only=True)
    """Edges whose time had passed."""
    late: int = field(default=0, kw_only=True)
    """Records dropped because they came past the horizon."""
    tombstones: int = field(default=0, kw_only=True)
    """Deletes remembered after the epoch."""
    watermark: int | None = field(default=None, kw_only=True)
    """With event time, that of the epoch, in microseconds."""


@dataclass(frozen=True)
class Summary(EpochResult):
    """An epoch over all members."""

    error_bound: float
    """The certificate ``e``: ``|score - exact| <= e * exact`` at every vertex."""
    state_hash: str
    """Fingerprint of parameters, edges and contributions of one ranking, with event time also of times, tombstones
    and watermark; 32 hex digits."""
    rounding_limited: bool
    """Whether fixed point rather than the tolerance may decide how small ``e`` gets; see the certificate
    module."""


def combined_hash(hashes: Sequence[str]) -> str:
    """Return the ``state_hash`` of a run from those of its rankings, in their order: of one ranking, its own."""
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.blake2b("".join(hashes).encode("ascii"), digest_size=16).hexdigest()


def combine(results: Sequence[EpochResult], parameters: Parameters) -> Summary:
    """Add up the results of all members of an epoch.

    Parameters
    ----------
    results : sequence of EpochResult
        One per member, in any order.
    parameters : Parameters
        The run's.

    Raises
    ------
    ValueError
        If the members are not at the same epoch, round and watermark.
    CapacityExceeded
        If the graph outgrew 64-bit fixed point.
    """
    if len(places := {(each.epoch, each.rounds, each.watermark) for each in results}) != 1:
        message = f"members disagree on epoch, rounds or watermark: {sorted(places, key=str)}"
        raise ValueError(message)
    vertices = sum(each.vertices for each in results)
    check_capacity(vertices, parameters)
    max_degree = max(each.max_degree for each in results)
    e_plus = max(each.e_plus for each in results)
    e_minus = max(each.e_minus for each in results)
    return Summary(
        epoch=results[0].epoch,
        inserted=sum(each.inserted for each in results),
        deleted=sum(each.deleted for each in results),
        unchanged=sum(each.unchanged for each in results),
        self_loops=sum(each.self_loops for each in results),
        rounds=results[0].rounds,
        emissions=sum(each.emissions for each in results),
        capped=any(each.capped for each in results),
        e_plus=e_plus,
        e_minus=e_minus,
        lane_low=sum(each.lane_low for each in results) % 2**64,
        lane_high=sum(each.lane_high for each in results) % 2**64,
        vertices=vertices,
        edges=sum(each.edges for each in results),
        max_degree=max_degree,
        error_bound=parameters.ranking.relative_error(e_plus, e_minus),
        state_hash=state_hash(parameters, [(each.lane_low, each.lane_high) for each in results], results[0].watermark),
        rounding_limited=rounding_limited(max_degree, parameters),
        expired=sum(each.expired for each in results),
        late=sum(each.late for each in results),
        tombstones=sum(each.tombstones for each in results),
        watermark=results[0].watermark,
    )
