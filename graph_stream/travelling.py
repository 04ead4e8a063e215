"""An epoch's records on their way from the reader to the partitions, in as few bytes as hold them.

What is small enough travels inside Ray's messages; the rest has to be put into shared memory, announced, found there
and let go of again, which costs more than the bytes do. Ids below 2^32 travel in four bytes, and inserts alone
without a word about it: so 12,000 records are small enough, not 6,000.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_stream.eventtime import EventTimes

Ids = npt.NDArray[np.int64]

_NARROW = np.iinfo(np.uint32).max


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """What the online tier gets of an epoch: the records, and when they came.

    Attributes
    ----------
    epoch, last : int, bool
        Its number, and whether it is the last.
    src, dst : ndarray of int64, shape (n,)
        The followers and the followed.
    op : ndarray of int8, shape (n,)
        +1 for an insert and -1 for a delete.
    read_started, read_seconds, scheduled_time : float
        Unix seconds, and how long it took to read them. ``scheduled_time`` is when the epoch closes by its schedule;
        where it has none, or was full before, when its last record was read.
    times : EventTimes or None
        With event time, in microseconds.
    """

    epoch: int
    last: bool
    src: Ids
    dst: Ids
    op: npt.NDArray[np.int8]
    read_started: float
    read_seconds: float
    scheduled_time: float
    times: EventTimes | None = None

    def __reduce__(self) -> Any:
        op = None if bool((self.op == 1).all()) else self.op
        rest = self.read_started, self.read_seconds, self.scheduled_time, self.times
        return _arrived, (self.epoch, self.last, _narrow(self.src), _narrow(self.dst), op, *rest)


def _arrived(epoch: int, last: bool, src: Any, dst: Any, op: Any, *rest: Any) -> Records:
    op = np.ones(len(src), np.int8) if op is None else op
    return Records(epoch, last, src.astype(np.int64), dst.astype(np.int64), op, *rest)


def _narrow(ids: Ids) -> npt.NDArray[Any]:
    fits = not len(ids) or (ids.min() >= 0 and ids.max() <= _NARROW)
    return ids.astype(np.uint32) if fits else ids
