"""When epochs that are cut by a clock close, and how fast records are let through."""

import math
import time
from collections.abc import Callable
from typing import Final, Protocol

_TAP_SECONDS: Final = 0.005


class Closing(Protocol):
    """Decides, by a clock, when an epoch closes that is not full before."""

    def begin(self) -> None:
        """Begin to read an epoch."""
        ...

    @property
    def due(self) -> float | None:
        """Unix seconds at which the epoch that is read is due, where that was known beforehand."""
        ...

    @property
    def seconds_left(self) -> float:
        """Seconds until the epoch that is read may close, if nothing comes; 0 when it is due."""
        ...

    def is_over(self, *, idle: bool, records: int, since: float | None) -> bool:
        """Whether the epoch closes now.

        Parameters
        ----------
        idle
            Whether nothing waits to be read.
        records
            How many it has.
        since
            Unix seconds from which on the oldest of them could have been read; None where it has none.
        """
        ...

    def next(self) -> None:
        """Go on to the next close: an epoch has been closed, or there was nothing to close."""
        ...


class Tap:
    """Lets records through at a rate, whether or not anybody keeps up: what nobody takes waits.

    Parameters
    ----------
    rate
        Records per second, from the first question on.
    clock
        Returns Unix seconds.
    sleep
        Waits for seconds.
    """

    def __init__(
        self, rate: float, clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._opened: float | None = None
        self._taken = 0

    @property
    def room(self) -> int:
        """How many records may be read now."""
        now = self._clock()
        if self._opened is None:
            self._opened = now
        return max(0, math.floor((now - self._opened) * self._rate) - self._taken)

    @property
    def since(self) -> float:
        """Unix seconds from which on the next record may be read."""
        opened = self._clock() if self._opened is None else self._opened
        return opened + (self._taken + 1) / self._rate

    def wait(self, seconds: float) -> None:
        """Wait until records may be read, for so many seconds at most."""
        # For several at a time: to read each one by itself would cost more than it waits.
        self._sleep(min(seconds, max(_TAP_SECONDS, self.since - self._clock())))

    def took(self, records: int) -> None:
        """Note that so many have been read."""
        self._taken += records


class Schedule:
    """Epochs close at whole multiples of a number of seconds, by a clock that anyone can read.

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

    def is_over(self, *, idle: bool, records: int, since: float | None) -> bool:
        """Whether the epoch closes now; see `Closing`."""
        now = self._clock()
        return now >= (self._due if idle else self._limit)

    def next(self) -> None:
        """Go on to the next close: an epoch has been closed, or there was nothing to close."""
        self._due = self._limit = self._after(self._clock())

    def _after(self, now: float) -> float:
        return (math.floor(now / self._seconds) + 1) * self._seconds
