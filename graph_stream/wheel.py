"""What falls due when: a hashed timing wheel (Varghese and Lauck, 1987) over the numbers of a table's entries.

Entries hang in chains by due time, `BUCKETS` to a turn; those of a later turn share the chain and are passed over.
Filing, taking out and finding what is due cost the entries concerned, not those there are, and 16 bytes an entry.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graph_stream.compiled import Int, compiled
from graph_stream.eventtime import NEVER
from graph_stream.growable import widened

BUCKETS = 4096
"""A power of two."""
UNFILED = -2
_END = -1


class Wheel(NamedTuple):
    """Chains of entries; all arrays of shape (capacity,) but ``heads``, which is empty in a wheel that takes none."""

    due: npt.NDArray[np.int64]
    """When, of those that are filed."""
    following: npt.NDArray[np.int32]
    """Next in the chain, -1 at its end, -2 of what is not filed."""
    previous: npt.NDArray[np.int32]
    """-1 at the head."""
    heads: npt.NDArray[np.int32]
    """First of each chain or -1; shape (BUCKETS,) or (0,)."""
    width: int
    """Time that shares a chain."""


def no_wheel() -> Wheel:
    """Return a wheel that takes no entries."""
    none = np.empty(0, np.int32)
    return Wheel(np.empty(0, np.int64), none, none, none, width=1)


def wheel_for(span: int) -> Wheel:
    """Return an empty wheel for due times that mostly lie within ``span`` of each other: half of a turn."""
    return no_wheel()._replace(heads=np.full(BUCKETS, _END, np.int32), width=max(1, 2 * span // BUCKETS))


def fitted(wheel: Wheel, entries: int) -> Wheel:
    """Return the wheel with room for so many entries, if it takes any; the old one is not to be used afterwards."""
    had = len(wheel.due)
    if had >= entries or not len(wheel.heads):
        return wheel
    following = widened(wheel.following, entries)
    following[had:] = UNFILED
    return wheel._replace(
        due=widened(wheel.due, entries), following=following, previous=widened(wheel.previous, entries)
    )


def nbytes(wheel: Wheel, entries: int) -> int:
    """Return the bytes in use by so many entries, if the wheel takes any, and the chains."""
    per_entry = sum(array.itemsize for array in wheel[:3]) if len(wheel.heads) else 0
    return entries * per_entry + wheel.heads.nbytes


def sweep_of(wheel: Wheel, before: int, bound: int) -> tuple[int, int]:
    """Return the first chain and how many that can hold what is due from ``before`` up to, not including, ``bound``."""
    if not len(wheel.heads) or bound == NEVER:
        return 0, 0
    if before == NEVER:
        return 0, BUCKETS
    first, last = before // wheel.width, bound // wheel.width
    return first % BUCKETS, min(last - first + 1, BUCKETS)


@compiled
def _bucket(wheel: Wheel, due: Int) -> Int:
    return np.int64((due // wheel.width) & (BUCKETS - 1))


@compiled
def is_filed(wheel: Wheel, entry: Int) -> bool:
    """Tell whether an entry is in the wheel."""
    return bool(wheel.following[entry] != UNFILED)


@compiled
def file(wheel: Wheel, entry: Int, due: Int) -> None:
    """Put in an entry that is not there."""
    bucket = _bucket(wheel, due)
    head = wheel.heads[bucket]
    wheel.due[entry] = due
    wheel.following[entry] = head
    wheel.previous[entry] = _END
    if head >= 0:
        wheel.previous[head] = entry
    wheel.heads[bucket] = entry


@compiled
def unfile(wheel: Wheel, entry: Int) -> None:
    """Take out an entry that is there."""
    before = wheel.previous[entry]
    after = wheel.following[entry]
    if before >= 0:
        wheel.following[before] = after
    else:
        wheel.heads[_bucket(wheel, wheel.due[entry])] = after
    if after >= 0:
        wheel.previous[after] = before
    wheel.following[entry] = UNFILED
