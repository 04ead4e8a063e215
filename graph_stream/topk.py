"""The certified top k: which vertices are proven to be among the k most influential, and in which order.

A certificate puts the exact influence of every vertex between ``X/(1 + e_minus)`` and ``X/(1 - e_plus)``
(:mod:`graph_stream.certificate`). The *exact ranking* is by exact influence, of equal ones the smaller id
first, so a vertex is in the exact top k if fewer than k others come before it. A vertex nobody follows has an
influence of exactly 0, known without error.

What is proven, with ``lower`` and ``upper`` the bounds of a vertex, and vertices listed by ``X``, of equal
ones the smaller id first:

*Order.* ``v`` comes before ``w`` if ``lower(v) > upper(w)``, for then ``I(v) > I(w)``. Two vertices without
followers tie exactly, and come by id. Nothing else is claimed: where two intervals touch, either order may be
the exact one.

*Membership.* Let ``r`` be the first vertex left out, the (k+1)th by ``X``. A listed ``v`` is in the exact top
k if it is proven to come before ``r``. Both bounds grow with ``X``: every vertex left out has an upper bound
of at most ``upper(r)``, so ``v`` comes before all of them (without followers, because all of them have none
either, and larger ids), and only the k - 1 others listed can come before ``v``. The rule misses nothing that
the intervals prove: they, and ``r``, all have upper bounds of at least ``upper(r)``, so where ``r`` may come
before ``v``, they may too, and that makes k. Where no vertex is left out, all are in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]

ROUNDING = 2.0**-50
"""Bounds are widened by this share of themselves: more than all the roundings of ``2**-53`` on the way from
the exact ``X`` to a bound computed from its published float64, of which there are at most five."""


@dataclass(frozen=True)
class TopK:
    """The k most influential vertices of an epoch, as published, best first; fewer where there are fewer."""

    index: Longs
    """Where each stands in the arrays it was chosen from; shape (m,), m <= k."""
    lower: Floats
    """Proven lower bound of its exact influence; shape (m,)."""
    upper: Floats
    """Proven upper bound; shape (m,)."""
    proven: Bools
    """Whether it is proven to be in the exact top k; shape (m,)."""
    in_order: Bools
    """Whether it is proven to come before the next vertex, which for the last one is the first left out; true
    where there is no next one. Shape (m,)."""

    def comes_before(self, first: int, second: int) -> bool:
        """Tell whether one of the listed is proven to come before another, by their places from 0."""
        return bool(_comes_before(self.lower, self.upper, np.int64(first), np.int64(second)))


def top_k(vertex: Longs, influence: Floats, e_plus: float, e_minus: float, k: int) -> TopK:
    """Choose the ``k`` most influential vertices, and tell what is proven of them.

    Parameters
    ----------
    vertex : ndarray of int64, shape (n,)
        External ids of all vertices there are, in any order.
    influence : ndarray of float64, shape (n,)
        Published influence ``X`` of each, at most two roundings from the exact one; 0 only where nobody
        follows. A common factor makes no difference.
    e_plus, e_minus : float
        The epoch's two-sided certificate, without a unit; from an ``e_plus`` of 1 on there is no upper bound.
    k : int
        How many, at least 1.

    Raises
    ------
    ValueError
        If ``k`` is less than 1.
    """
    if k < 1:
        message = f"k must be at least 1, not {k}"
        raise ValueError(message)
    # One more than asked for: the first one left out decides what is proven of the others.
    index = np.lexsort((vertex, -influence))[: k + 1]
    lower, upper = bounds(influence[index], e_plus, e_minus)
    listed = np.arange(min(k, len(index)))
    in_order = np.ones(len(listed), np.bool_)
    following = listed[: len(index) - 1] + 1
    in_order[: len(following)] = _comes_before(lower, upper, following - 1, following)
    proven = np.ones(len(listed), np.bool_)
    if len(index) > k:
        proven = _comes_before(lower, upper, listed, np.int64(k))
    return TopK(index[:k], lower[:k], upper[:k], proven, in_order)


def bounds(influence: Floats, e_plus: float, e_minus: float) -> tuple[Floats, Floats]:
    """Return the bounds of the exact influence, rounded outwards; exactly 0 where the influence is.

    Parameters
    ----------
    influence : ndarray of float64, shape (n,)
        Published influence ``X``.
    e_plus, e_minus : float
        The two-sided certificate.
    """
    lower = influence / (1.0 + e_minus) * (1.0 - ROUNDING)
    if e_plus >= 1:
        return lower, np.where(influence > 0, np.inf, 0.0)
    return lower, influence / (1.0 - e_plus) * (1.0 + ROUNDING)


def _comes_before(lower: Floats, upper: Floats, first: Longs | np.int64, second: Longs | np.int64) -> Bools:
    apart = lower[first] > upper[second]
    without_followers = (upper[first] == 0) & (upper[second] == 0) & (first < second)
    found: Bools = apart | without_followers
    return found
