"""When epochs that are cut by time close: at whole multiples of a number of seconds, by a clock anyone can read."""

import math
from collections.abc import Callable


class Schedule:
    """The closes of one reader's epochs.

    An epoch is due at the first multiple of `seconds` after the close of the one before. It closes then, whoever
    has kept up; one whose reading begins later takes what has come meanwhile, so that several missed closes
    make one epoch, and counts as due when it was first due: being late shows. Where nothing has come, the close is
    passed over.

    Parameters
    ----------
    seconds
        Between two closes.
    clock
        Returns Unix seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._due = self._limit = self._after(clock())

    def begin(self) -> None:
        """Begin to read an epoch."""
        now = self._clock()
        # A late one is read until nothing is left, but no longer than an epoch lasts.
        self._limit = self._due if now < self._due else now + self._seconds

    @property
    def due(self) -> float:
        """Unix seconds at which the epoch that is read is due."""
        return self._due

    @property
    def seconds_left(self) -> float:
        """Seconds for which an epoch with nothing in it may wait; 0 when it is due."""
        return max(0.0, self._due - self._clock())

    def is_over(self, *, idle: bool) -> bool:
        """Whether the epoch closes now; `idle` says that nothing waits to be read."""
        now = self._clock()
        return now >= (self._due if idle else self._limit)

    def next(self) -> None:
        """Go on to the next close: an epoch has been closed, or there was nothing to close."""
        self._due = self._limit = self._after(self._clock())

    def _after(self, now: float) -> float:
        return (math.floor(now / self._seconds) + 1) * self._seconds
