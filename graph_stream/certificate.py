"""The proven error bound that is published with an epoch.

With ``y_f = b_f + p*X_f`` (what follower ``f`` ought to share out) and ``d_f*c_f`` (what it has shared out),
the lag of ``f`` is ``(y_f - d_f*c_f) / b_f``. If every lag lies in ``[-e_minus, e_plus]``, then ``X/(1 + e_minus) <=
I <= X/(1 - e_plus)`` at every vertex (docs/design/0003-online-state.md), so ``|I - X| <= e*I`` with ``e = max(e_plus,
e_minus)``.

Lags are counted in buckets, 32 to the octave, so that the largest is known within 3 % without visiting the
vertices that did not change. A lag is computed in float64 and widened by its own rounding error before it is
counted: what is published bounds the exact lag, not the computed one.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from graph_stream.algorithms import Parameters
from graph_stream.compiled import Int, compiled
from graph_stream.errors import GraphStreamError

BUCKETS_PER_OCTAVE = 32
LOWEST_EXPONENT = -43
"""Lags up to ``2**(LOWEST_EXPONENT - 1)`` share bucket 0, which is never counted."""
HIGHEST_EXPONENT = 31
"""Lags of ``2**31`` and more share the last bucket; no state within the capacity reaches it."""
BUCKETS = (HIGHEST_EXPONENT - LOWEST_EXPONENT + 1) * BUCKETS_PER_OCTAVE + 2

TOLERANCE_SLACK = 2.0**-20
"""A vertex that need not emit has a computed lag of at most the tolerance; rounding may add this share of
it."""


class CapacityExceeded(GraphStreamError):
    """The graph has more vertices than 64-bit fixed point can carry at this retweet probability."""


@compiled
def bucket_of(lag: float) -> Int:
    """Return the bucket whose range, below ``upper_edge(bucket)``, holds ``lag``."""
    if lag <= 2.0 ** (LOWEST_EXPONENT - 1):
        return 0
    mantissa, exponent = math.frexp(lag)
    if exponent > HIGHEST_EXPONENT:
        return BUCKETS - 1
    return (exponent - LOWEST_EXPONENT) * BUCKETS_PER_OCTAVE + int((mantissa - 0.5) * (2 * BUCKETS_PER_OCTAVE)) + 1


def upper_edge(bucket: int) -> float:
    """Return the smallest number above every lag counted in ``bucket``."""
    if bucket == 0:
        return 2.0 ** (LOWEST_EXPONENT - 1)
    if bucket == BUCKETS - 1:
        return math.inf
    octave, step = divmod(bucket - 1, BUCKETS_PER_OCTAVE)
    return math.ldexp(0.5 + (step + 1) / (2 * BUCKETS_PER_OCTAVE), octave + LOWEST_EXPONENT)


def tolerance_limit(tolerance: float) -> float:
    """Return the bound published for a vertex within the tolerance: the tolerance and its rounding slack."""
    return tolerance * (1.0 + TOLERANCE_SLACK)


def largest_lag(counts: npt.NDArray[np.int64], tolerance: float) -> float:
    """Return a proven bound of all lags of one sign.

    Parameters
    ----------
    counts : ndarray of int64, shape (BUCKETS,)
        How many vertices have their widened lag in each bucket. The kernels count a lag up to the tolerance
        limit no higher than the limit's own bucket, and a larger one above that bucket.
    tolerance : float
        The run's tolerance.

    Returns
    -------
    float
        Upper edge of the highest bucket in use, cut at the tolerance limit where all lags are within it; at
        most 1/32 above the largest lag, and at least ``upper_edge(0)``.
    """
    used = np.flatnonzero(counts)
    top = int(used[-1]) if len(used) else 0
    limit = tolerance_limit(tolerance)
    return min(upper_edge(top), limit) if top <= bucket_of(limit) else upper_edge(top)


def error_bound(influence: npt.NDArray[np.float64], relative: float) -> npt.NDArray[np.float64]:
    """Return the absolute error bound of each vertex, ``e*X/(1-e)``.

    Parameters
    ----------
    influence : ndarray of float64, shape (n,)
        Published influence ``X``.
    relative : float
        ``e``, the epoch's certificate.

    Returns
    -------
    ndarray of float64, shape (n,)
        Exactly 0 where the influence is 0 (no followers); infinite elsewhere if ``e >= 1``.
    """
    if relative >= 1:
        return np.where(influence > 0, np.inf, 0.0)
    return influence * (relative / (1.0 - relative))


def rounding_limited(max_degree: int, parameters: Parameters) -> bool:
    """Tell whether fixed point, not the tolerance, may decide how small the largest lag gets.

    A contribution is rounded to a multiple of ``2**-k``, so the lag of a vertex that follows ``d`` others can
    stay at ``d * 2**-(k+1)``, relative to its base. From half the tolerance on, the published bound may be the
    wider one.
    """
    least_base = min(1.0, parameters.weights.weight.min(initial=1.0))
    return bool(max_degree * 2.0 ** -(parameters.fixed_point_bits + 1) / least_base > parameters.tolerance / 2)


def check_capacity(vertices: int, parameters: Parameters) -> None:
    """Refuse a graph whose sums might leave int64.

    After every round a vertex has shared out at most ``b * (1 + tolerance) + p*X``, for an ``X`` it had then or
    before (and half a unit of rounding per edge), so the sum of all influence never exceeds ``sum(b) * (1 +
    tolerance) / (1 - p)``; with ``sum(b) / (1 - p) < 2**(62 - k)`` and ``tolerance < 1`` that is below
    ``2**63`` in units of ``2**-k``. Where vertices have weights, all of them are counted, there or not. Sums
    within a round may wrap around and come back: int64 addition is exact modulo ``2**64``, in any order. The
    rule itself multiplies in float64 and cannot overflow.

    Raises
    ------
    CapacityExceeded
        If the limit is reached.
    """
    capacity = 2 ** (62 - parameters.fixed_point_bits)
    bases = vertices + float(parameters.weights.weight.sum())
    if bases / (1.0 - parameters.factor) >= capacity:
        name = "retweet probability" if parameters.algorithm == "tunkrank" else "damping"
        and_weights = f" and weights of {bases - vertices:g}" if len(parameters.weights) else ""
        message = (
            f"{vertices} vertices{and_weights} at {name} {parameters.factor} exceed what 64-bit fixed point carries: "
            f"vertices / (1 - p) must stay below {capacity}; use a smaller {name}"
        )
        raise CapacityExceeded(message)
