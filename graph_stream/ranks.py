"""What one ranking keeps per vertex: influence, contribution, and how it stands in the rounds.

Several rankings share one adjacency; each has arrays of its own, by the adjacency's slots. A slot that no
vertex has holds zeros, so nothing needs to be done when one is given or taken back: a vertex without edges
has no influence and emits nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream.growable import widened


class Ranks(NamedTuple):
    """State per slot; every array has shape (capacity,)."""

    influence: npt.NDArray[np.int64]
    """``X``; for a ghost, what is to be sent to its owner."""
    contribution: npt.NDArray[np.int64]
    """``c``."""
    touched: npt.NDArray[np.bool_]
    """To be looked at in the next round."""
    visited: npt.NDArray[np.bool_]
    """Looked at in this epoch."""
    lag_plus: npt.NDArray[np.uint16]
    """Bucket its positive lag is counted in."""
    lag_minus: npt.NDArray[np.uint16]
    """Bucket its negative lag is counted in."""


def no_ranks() -> Ranks:
    """Return the ranks of no slots."""
    return Ranks(
        influence=np.zeros(0, np.int64),
        contribution=np.zeros(0, np.int64),
        touched=np.zeros(0, np.bool_),
        visited=np.zeros(0, np.bool_),
        lag_plus=np.zeros(0, np.uint16),
        lag_minus=np.zeros(0, np.uint16),
    )


def fitted(ranks: Ranks, slots: int) -> Ranks:
    """Return the ranks with room for so many slots; the old arrays are not to be used afterwards."""
    if len(ranks.influence) >= slots:
        return ranks
    return Ranks._make(widened(array, slots) for array in ranks)
