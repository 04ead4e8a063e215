"""What is computed: the parameters of a linear ranking, as pure values.

TunkRank (design, section 1) gives every vertex ``x`` the influence ``I(x) = sum over followers f of x of
(1 + p*I(f)) / d_f``, with ``p`` the retweet probability and ``d_f`` the number of vertices ``f`` follows.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from graph_stream.compiled import Int, compiled

ALGORITHMS = ("tunkrank",)

FORMAT_VERSION = 1
"""Names the rule, the hash functions, the round cap and the snapshot layout together."""


@dataclass(frozen=True)
class Parameters:
    """Everything besides the edges that an answer, and so its ``state_hash``, depends on.

    Parameters
    ----------
    algorithm : str
        Name of the ranking; ``"tunkrank"``.
    retweet_probability : float
        ``p`` of TunkRank, ``0 <= p < 1``.
    tolerance : float
        Relative error the rounds work down to, ``0 < tolerance < 1``.
    fixed_point_bits : int
        ``k``: influence and contributions are int64 multiples of ``2**-k``; between 24 and 40.
    format_version : int
        Version of rule, hash and snapshot layout; only ``FORMAT_VERSION`` is known.

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

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            message = f"unknown algorithm {self.algorithm!r}; known: {', '.join(ALGORITHMS)}"
            raise ValueError(message)
        if not 0 <= self.retweet_probability < 1:
            message = f"retweet probability must satisfy 0 <= p < 1, got {self.retweet_probability!r}"
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

    @property
    def scale(self) -> float:
        """The fixed-point value of 1, ``2**k``."""
        return float(1 << self.fixed_point_bits)

    def digest(self) -> bytes:
        """Return 16 bytes that differ whenever any parameter does.

        Returns
        -------
        bytes
            BLAKE2b-128 of the name and the exact bits of the numbers.
        """
        numbers = struct.pack(
            "<ddqq",
            self.retweet_probability,
            self.tolerance,
            self.fixed_point_bits,
            self.format_version,
        )
        return hashlib.blake2b(self.algorithm.encode() + b"\0" + numbers, digest_size=16).digest()


@compiled
def share(degree: Int, contribution: Int, influence: Int, probability: float, threshold: float, scale: float) -> Int:
    """Return the contribution a vertex ought to have emitted: the rule (design, section 5).

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
    probability : float
        ``p``.
    threshold : float
        ``tolerance * scale``.
    scale : float
        ``2**k``.

    Returns
    -------
    int
        ``rint((scale + p*X) / d)`` if ``|d*c - (scale + p*X)| > threshold``, else ``contribution`` unchanged.
    """
    due = scale + probability * np.float64(influence)
    if abs(np.float64(degree) * np.float64(contribution) - due) > threshold:
        return np.int64(np.rint(due / np.float64(degree)))
    return contribution
