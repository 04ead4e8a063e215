"""What is computed: linear rankings, as pure values.

All of them solve ``y = b + p * W^T y`` with ``W[f, x] = 1 / d_f`` where ``f`` follows ``x``: every vertex has
``b`` to give and hands on the share ``p`` of what it is given, in equal parts, to those it follows. The online
tier keeps ``X = W^T y``, what each vertex is given (its influence), for any ``b > 0`` and ``0 <= p < 1`` in
the same way; an :class:`Algorithm` says what ``b`` and ``p`` are and what is read out of ``X``.

A ranking that is no such fixed point, say a shortest path, would need another rule and another certificate:
a module of its own beside :mod:`graph_stream.kernels`, over the same adjacency.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from graph_stream.compiled import Int, compiled
from graph_stream.eventtime import EventTime

FORMAT_VERSION = 1
"""Names the rule, the hash functions, the round cap and the snapshot layout together."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Weights:
    """Vertices whose base ``b`` is not 1.

    Parameters
    ----------
    vertex : ndarray of int64, shape (n,)
        External ids, ascending, each once.
    weight : ndarray of float64, shape (n,)
        Their bases, each in ``LEAST_WEIGHT .. GREATEST_WEIGHT``.

    Raises
    ------
    ValueError
        If ids repeat or a weight lies outside its range; the text names the vertex.
    """

    vertex: npt.NDArray[np.int64]
    weight: Floats

    def __post_init__(self) -> None:
        order = np.argsort(self.vertex, kind="stable")
        vertex = np.asarray(self.vertex, np.int64)[order]
        weight = np.asarray(self.weight, np.float64)[order]
        repeated = np.flatnonzero(vertex[1:] == vertex[:-1])
        if len(repeated):
            message = f"vertex {vertex[repeated[0]]} has more than one weight"
            raise ValueError(message)
        wrong = np.flatnonzero(~((weight >= LEAST_WEIGHT) & (weight <= GREATEST_WEIGHT)))
        if len(wrong):
            at = wrong[0]
            message = f"vertex {vertex[at]} has weight {weight[at]}; it must lie in {LEAST_WEIGHT}..{GREATEST_WEIGHT:g}"
            raise ValueError(message)
        object.__setattr__(self, "vertex", vertex)
        object.__setattr__(self, "weight", weight)

    @classmethod
    def none(cls) -> Weights:
        """Return no weights: every base is 1."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float64))

    def __len__(self) -> int:
        return len(self.vertex)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def digest(self) -> bytes:
        """Return 16 bytes that differ whenever any weight does."""
        columns = self.vertex.astype("<i8").tobytes() + self.weight.astype("<f8").tobytes()
        return hashlib.blake2b(columns, digest_size=16).digest()

    def of(self, vertex: npt.NDArray[np.int64]) -> Floats:
        """Return the base of each of some vertices; shape (n,)."""
        bases = np.ones(len(vertex))
        if len(self):
            at = np.minimum(np.searchsorted(self.vertex, vertex), len(self) - 1)
            listed = self.vertex[at] == vertex
            bases[listed] = self.weight[at[listed]]
        return bases


LEAST_WEIGHT = 2.0**-10
"""Smaller ones would drown in the rounding of fixed point."""
GREATEST_WEIGHT = 2.0**20
"""Greater ones would use up the range of fixed point; see `certificate.check_capacity`."""


class Algorithm(Protocol):
    """What makes one linear ranking out of ``X``."""

    name: str
    weighted: bool
    """Whether vertices may have a base other than 1."""
    local: bool
    """Whether a vertex's score follows from its own ``X`` alone."""

    def factor(self, parameters: Parameters) -> float:
        """Return ``p``."""

    def scores(self, influence: Floats, base: Floats, factor: float) -> Floats:
        """Return what is published for each vertex of a whole graph, from ``X`` and ``b``; shape (n,) each."""

    def relative_error(self, e_plus: float, e_minus: float) -> float:
        """Return ``e`` with ``|score - exact| <= e * exact``.

        What is given is that the exact influence lies in ``X/(1 + e_minus) .. X/(1 - e_plus)``.
        """


class TunkRank:
    """``I(x) = sum over followers f of x of (1 + p*I(f)) / d_f``, with ``p`` the retweet probability: ``X`` itself."""

    name = "tunkrank"
    weighted = False
    local = True

    def factor(self, parameters: Parameters) -> float:
        """Return the retweet probability."""
        return parameters.retweet_probability

    def scores(self, influence: Floats, base: Floats, factor: float) -> Floats:
        """Return the influence."""
        return influence

    def relative_error(self, e_plus: float, e_minus: float) -> float:
        """Return the greater of both sides."""
        return max(e_plus, e_minus)


class PageRank:
    """``y / sum(y)`` with ``y = b + p*X`` and ``p`` the damping.

    That is PageRank with jumps to vertices in proportion to ``b``, also from those that follow no one: the
    normalised solution without these jumps is the solution with them (Langville and Meyer, 2006, chapter 8).
    """

    name = "pagerank"
    weighted = True
    local = False

    def factor(self, parameters: Parameters) -> float:
        """Return the damping."""
        return parameters.damping

    def scores(self, influence: Floats, base: Floats, factor: float) -> Floats:
        """Return shares that add up to 1."""
        given = base + factor * influence
        # Exact, so that the order in which vertices lie in memory cannot be seen.
        total = math.fsum(given)
        return given / total if total else given

    def relative_error(self, e_plus: float, e_minus: float) -> float:
        """Return the bound of a quotient whose both sides have one: ``b`` is exact, so ``y`` is bounded as ``X`` is."""
        return float("inf") if e_plus >= 1 else (e_plus + e_minus) / (1.0 - e_plus)


ALGORITHMS: dict[str, Algorithm] = {algorithm.name: algorithm for algorithm in (TunkRank(), PageRank())}


@dataclass(frozen=True)
class Parameters:
    """Everything besides the edges that an answer, and so its ``state_hash``, depends on.

    Parameters
    ----------
    algorithm : str
        Name of the ranking, a key of ``ALGORITHMS``.
    retweet_probability : float
        ``p`` of TunkRank, ``0 <= p < 1``.
    tolerance : float
        Relative error the rounds work down to, ``0 < tolerance < 1``.
    fixed_point_bits : int
        ``k``: influence and contributions are int64 multiples of ``2**-k``; between 24 and 40.
    format_version : int
        Version of rule, hash and snapshot layout; only ``FORMAT_VERSION`` is known.
    damping : float
        ``p`` of PageRank, ``0 <= p < 1``.
    weights : Weights
        Bases that are not 1, where the algorithm has such.
    event_time : EventTime, optional
        How long records count, where they carry a time; the same for all rankings of a run.

    Raises
    ------
    ValueError
        If a value lies outside its range; the text names value and range.
    """

    algorithm: str = "tunkrank"
    retweet_probability: float = 0.00037
    tolerance: float = 1e-3
    fixed_point_bits: int = 32
    format_version: int = FORMAT_VERSION
    damping: float = 0.85
    weights: Weights = field(default_factory=Weights.none)
    event_time: EventTime | None = None

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            message = f"unknown algorithm {self.algorithm!r}; known: {', '.join(ALGORITHMS)}"
            raise ValueError(message)
        if not 0 <= self.retweet_probability < 1:
            message = f"retweet probability must satisfy 0 <= p < 1, got {self.retweet_probability!r}"
            raise ValueError(message)
        if not 0 <= self.damping < 1:
            message = f"damping must satisfy 0 <= damping < 1, got {self.damping!r}"
            raise ValueError(message)
        if not 0 < self.tolerance < 1:
            message = f"tolerance must satisfy 0 < tolerance < 1, got {self.tolerance!r}"
            raise ValueError(message)
        if not 24 <= self.fixed_point_bits <= 40:
            message = f"fixed point bits must lie in 24..40, got {self.fixed_point_bits!r}"
            raise ValueError(message)
        if self.format_version != FORMAT_VERSION:
            message = f"format version {self.format_version!r} is unknown here; this release has {FORMAT_VERSION}"
            raise ValueError(message)
        if len(self.weights) and not self.ranking.weighted:
            message = f"{self.algorithm} has no weights of vertices"
            raise ValueError(message)

    @property
    def ranking(self) -> Algorithm:
        """The algorithm itself."""
        return ALGORITHMS[self.algorithm]

    @property
    def factor(self) -> float:
        """``p``, the share of what it is given that a vertex hands on."""
        return self.ranking.factor(self)

    @property
    def scale(self) -> float:
        """The fixed-point value of 1, ``2**k``."""
        return float(1 << self.fixed_point_bits)

    def digest(self) -> bytes:
        """Return 16 bytes that differ whenever any parameter that counts for the algorithm does.

        Returns
        -------
        bytes
            BLAKE2b-128 of the name, the exact bits of the numbers, and weights and event time if there are any.
        """
        numbers = struct.pack(
            "<ddqq",
            self.factor,
            self.tolerance,
            self.fixed_point_bits,
            self.format_version,
        )
        weights = self.weights.digest() if len(self.weights) else b""
        moments = b"" if self.event_time is None else self.event_time.digest()
        return hashlib.blake2b(self.algorithm.encode() + b"\0" + numbers + weights + moments, digest_size=16).digest()


@compiled
def share(
    degree: Int, contribution: Int, influence: Int, base: float, probability: float, threshold: float, scale: float
) -> Int:
    """Return the contribution a vertex ought to have emitted: the rule (docs/design/0003-online-state.md).

    All arithmetic is float64, one correctly rounded operation at a time, so that every machine and every
    execution of a round decides alike.

    Parameters
    ----------
    degree : int
        How many vertices it follows, at least 1.
    contribution : int
        ``c``, what it emitted last to each of them, in units of ``1 / scale``.
    influence : int
        ``X``, in units of ``1 / scale``.
    base : float
        ``b``, what it gives away without any follower.
    probability : float
        ``p``.
    threshold : float
        ``tolerance * scale``.
    scale : float
        ``2**k``.

    Returns
    -------
    int
        ``rint((b*scale + p*X) / d)`` if ``|d*c - (b*scale + p*X)| > b*threshold``, else ``contribution``
        unchanged.
    """
    due = base * scale + probability * np.float64(influence)
    if abs(np.float64(degree) * np.float64(contribution) - due) > base * threshold:
        return np.int64(np.rint(due / np.float64(degree)))
    return contribution
