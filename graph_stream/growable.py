"""Arrays that grow where they are.

A long array is a view of a stretch of reserved addresses as large as the machine's memory. The system provides
pages, of zeros, as they are written to first, so a longer view of the same stretch takes no copying and no
memory: there is never an old array beside the new one.
"""

from __future__ import annotations

import functools
import mmap
import os
from typing import TypeVar

import numpy as np
import numpy.typing as npt

RESERVE_FROM_BYTES = 1 << 22
"""Shorter arrays are copied: a stretch of its own begins with a huge page."""
_NO_RESERVE = 0x4000
"""``MAP_NORESERVE`` of Linux, which `mmap` names only from Python 3.14 on: addresses are no claim on memory."""

Scalar = TypeVar("Scalar", bound=np.generic)


def widened(array: npt.NDArray[Scalar], length: int) -> npt.NDArray[Scalar]:
    """Return a longer array with the same content and zeros behind; the old one is not to be used afterwards.

    Parameters
    ----------
    array : ndarray, shape (n,)
        Behind its end nothing was ever written: what `widened` or ``numpy.zeros`` has returned.
    length : int
        At least n.
    """
    stretch = array.base
    if isinstance(stretch, np.ndarray) and len(stretch) >= length:
        return stretch[:length]
    wider = _zeros(array.dtype, length)
    wider[: len(array)] = array
    return wider


def _zeros(dtype: np.dtype[Scalar], length: int) -> npt.NDArray[Scalar]:
    needed = length * dtype.itemsize
    if needed < RESERVE_FROM_BYTES:
        return np.zeros(length, dtype)
    room = max(needed, _memory_bytes())
    stretch = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    stretch.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(stretch, dtype, room // dtype.itemsize)[:length]


@functools.cache
def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
