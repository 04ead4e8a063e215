"""Event time: when things happened, as their records say, and how much of it an epoch still has to do with.

Times are int64 microseconds since 1970 (UTC). The *watermark* of an epoch is the greatest time of all records in
the epochs before it, or where epochs are cut by event time what every split has reached (`ingest.intervals`):
recorded with the epoch, so that nothing here ever asks a clock. Two bounds follow from it:
records and tombstones older than the *horizon* no longer count, edges older than the *expiry* are gone
(docs/design/0009 proves that nothing is lost by forgetting them).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Longs = npt.NDArray[np.int64]

NEVER = -(2**63)
"""Before every time: the watermark of an epoch that no record came before, and the time of what has none."""
GREATEST_TIME = 2**61
"""Times beyond this, some 73,000 years from 1970 either way, count as this: differences must fit into int64."""
GREATEST_SECONDS = 1e12
"""Longest window and lateness."""
_PER_SECOND = 1_000_000


def microseconds(seconds: npt.NDArray[np.float64]) -> Longs:
    """Return times, given in Unix seconds, in microseconds: rounded to the nearest, cut off at `GREATEST_TIME`.

    Raises
    ------
    ValueError
        If a time is not finite.
    """
    if not np.all(np.isfinite(seconds)):
        message = f"time of record {np.flatnonzero(~np.isfinite(seconds))[0]} is not finite"
        raise ValueError(message)
    # Monotone in every step, so that records keep their order and the greatest stays the greatest.
    return np.rint(np.clip(seconds * _PER_SECOND, -GREATEST_TIME, GREATEST_TIME)).astype(np.int64)


@dataclass(frozen=True)
class EventTime:
    """How long what the records say counts.

    Parameters
    ----------
    window : int or None
        Microseconds after its time at which an edge expires; None: never.
    allowed_lateness : int or None
        Microseconds that a record may be older than the watermark; None: as old as the window reaches.

    Raises
    ------
    ValueError
        If neither is given, or one is out of its range; the text names it as the option is named.
    """

    window: int | None = None
    allowed_lateness: int | None = None

    def __post_init__(self) -> None:
        most = int(GREATEST_SECONDS) * _PER_SECOND
        if self.window is None and self.allowed_lateness is None:
            message = "event time needs a window or an allowed lateness"
            raise ValueError(message)
        if self.window is not None and not 1 <= self.window <= most:
            message = f"window must lie in 1e-06..{GREATEST_SECONDS:g} seconds, got {self.window / _PER_SECOND}"
            raise ValueError(message)
        if self.allowed_lateness is not None and not 0 <= self.allowed_lateness <= most:
            got = self.allowed_lateness / _PER_SECOND
            message = f"allowed-lateness must lie in 0..{GREATEST_SECONDS:g} seconds, got {got}"
            raise ValueError(message)

    @classmethod
    def of_seconds(cls, window: float | None, allowed_lateness: float | None) -> EventTime | None:
        """Return event time as options give it, in seconds; None where neither is given, which is no event time."""
        if window is None and allowed_lateness is None:
            return None
        return cls(_rounded("window", window), _rounded("allowed-lateness", allowed_lateness))

    def expiry(self, watermark: int) -> int:
        """Return the time before which edges have expired: their time is at most the watermark less the window."""
        if self.window is None or watermark == NEVER:
            return NEVER
        return watermark - self.window + 1

    def horizon(self, watermark: int) -> int:
        """Return the time before which a record is late and a tombstone forgotten; never before `expiry`."""
        if self.allowed_lateness is None or watermark == NEVER:
            return self.expiry(watermark)
        return max(watermark - self.allowed_lateness, self.expiry(watermark))

    @property
    def reach(self) -> int:
        """Microseconds behind the watermark at which the horizon lies."""
        spans = [span for span in (self.window, self.allowed_lateness) if span is not None]
        return min(spans)

    def digest(self) -> bytes:
        """Return bytes that differ whenever the state may: window, and the lateness in effect."""
        # What is older than the window changes nothing, so a lateness beyond it is as none.
        return b"time" + struct.pack("<qq", self.window or 0, self.reach)


def _rounded(name: str, seconds: float | None) -> int | None:
    if seconds is None:
        return None
    if not abs(seconds) <= GREATEST_SECONDS:
        message = f"{name} must be at most {GREATEST_SECONDS:g} seconds, got {seconds}"
        raise ValueError(message)
    return round(seconds * _PER_SECOND)


class EventTimes(NamedTuple):
    """The times of an epoch."""

    time: Longs
    """Of each record, in microseconds; shape (n,)."""
    watermark: int
    """The epoch's, in microseconds, or `NEVER`."""

    @classmethod
    def of_epoch(cls, seconds: npt.NDArray[np.float64] | None, cut: Mapping[str, Any]) -> EventTimes | None:
        """Return the times of an epoch's records, given in seconds, at the watermark in its cut.

        None where the cut has no watermark, which is a run without event time. Only an epoch without records may
        come without times.
        """
        if "watermark" not in cut:
            return None
        time = np.empty(0, np.int64) if seconds is None else microseconds(seconds)
        return cls(time, cut["watermark"])


def advanced(watermark: int, seconds: npt.NDArray[np.float64] | None) -> int:
    """Return the watermark after an epoch whose records have these times: it never falls."""
    if seconds is None or not len(seconds):
        return watermark
    return max(watermark, int(microseconds(seconds.max(keepdims=True))[0]))


def raised(watermark: int, seconds: float | None) -> int:
    """Return the watermark raised to a time, None being none: it never falls."""
    return advanced(watermark, None if seconds is None else np.array([seconds]))


def in_seconds(watermark: int) -> float | None:
    """Return a watermark in Unix seconds, None where there is none: for display."""
    return None if watermark == NEVER else watermark / _PER_SECOND
