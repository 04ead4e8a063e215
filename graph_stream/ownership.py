"""Who owns a vertex: 256 virtual partitions, dealt in contiguous shares to the members of a run.

A vertex's virtual partition depends on its external id alone, so snapshots are sorted by it and can be read
by any number of members. An edge lives with the owner of its follower (docs/design/0003-online-state.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graph_stream.compiled import Int, compiled

VIRTUAL_PARTITIONS = 256


@compiled
def mix64(value: np.uint64) -> np.uint64:
    """Return a bijective, well mixed image of 64 bits (the finaliser of SplitMix64, Steele et al., 2014).

    Ownership, hash and snapshots of stored runs hang on it: a change needs a new format version.
    """
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def member_of(vertex: np.int64, partitions: Int) -> Int:
    """Return the index of the member that owns ``vertex`` among ``partitions`` members."""
    return np.int64(mix64(np.uint64(vertex)) & np.uint64(VIRTUAL_PARTITIONS - 1)) * partitions // VIRTUAL_PARTITIONS


@compiled
def _virtual_partitions(vertices: npt.NDArray[np.int64], shares: npt.NDArray[np.int16]) -> None:
    for i in range(len(vertices)):
        shares[i] = np.int64(mix64(np.uint64(vertices[i])) & np.uint64(VIRTUAL_PARTITIONS - 1))


def virtual_partition(vertices: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """Return the virtual partition of each vertex, ``mix64(id) mod 256``.

    Parameters
    ----------
    vertices : ndarray of int64, shape (n,)
        External ids.

    Returns
    -------
    ndarray of int16, shape (n,)
        Values in ``0 .. 255``.
    """
    shares = np.empty(len(vertices), np.int16)
    _virtual_partitions(np.require(vertices, np.int64, ["C", "W"]), shares)
    return shares


def owner(vertices: npt.NDArray[np.int64], partitions: int) -> npt.NDArray[np.int64]:
    """Return the member that owns each vertex.

    Virtual partition ``v`` belongs to member ``v * partitions // 256``: contiguous shares, sizes differing by
    at most one.

    Parameters
    ----------
    vertices : ndarray of int64, shape (n,)
        External ids.
    partitions : int
        Number of members, ``1 .. 256``.

    Returns
    -------
    ndarray of int64, shape (n,)
        Values in ``0 .. partitions - 1``.
    """
    return virtual_partition(vertices).astype(np.int64) * partitions // VIRTUAL_PARTITIONS


def virtual_range(index: int, partitions: int) -> range:
    """Return the virtual partitions that member ``index`` of ``partitions`` owns.

    Raises
    ------
    ValueError
        If there are not 1 to 256 members, or ``index`` is none of them.
    """
    if not 1 <= partitions <= VIRTUAL_PARTITIONS:
        message = f"there can be 1 to {VIRTUAL_PARTITIONS} partitions, not {partitions}"
        raise ValueError(message)
    if not 0 <= index < partitions:
        message = f"partition {index} does not exist among {partitions} (counted from 0)"
        raise ValueError(message)
    first = -(-index * VIRTUAL_PARTITIONS // partitions)
    last = -(-(index + 1) * VIRTUAL_PARTITIONS // partitions)
    return range(first, last)
