"""Epochs by event time: which interval is cut, and which splits hold it open.

Each split has *reached* the greatest time that a record of it has shown, be it taken or the next one. It is read
up to its first record behind the interval, and then held until the others are there, too: so a record belongs to
the interval of the greatest time up to it in its own split, whatever the speed of the others. The interval is over
when every split has left it behind, but for live ones that have been silent for so long that nobody waits for
them any more.

Intervals have numbers: that of number *n* begins at *n* times its length. Where splits are told to be in no
interval yet, None, nothing is read but where the first one lies.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final, Protocol, TypeAlias

IDLE_SECONDS: Final = 5.0
GREATEST_SECONDS: Final = 2.0**61 / 1e6
"""Times from here on, some 73,000 years from 1970, are one interval, and so are those before as much."""

Place: TypeAlias = tuple[str, str]
"""What stays the same of a split: its source, and its name in it, or nothing for all of a queue's."""


class Progress(Protocol):
    """How far a split has come.

    Attributes
    ----------
    end
        Whether nothing is left in it.
    reached
        The greatest time, in seconds, that a record of it has shown; None before the first.
    """

    end: bool
    reached: float | None


class Intervals:
    """The intervals of event time by which one reader cuts.

    It remembers nothing but which live splits have been silent, and for how long somebody has listened to them.

    Parameters
    ----------
    seconds
        Length of an interval.
    idle_seconds
        A live split that has been silent for so long is not waited for until it speaks again.
    """

    def __init__(self, seconds: float, idle_seconds: float = IDLE_SECONDS) -> None:
        self._seconds = seconds
        self._idle_seconds = idle_seconds
        self._last = math.floor(GREATEST_SECONDS / seconds)
        self._silent_seconds: dict[Place, float] = {}

    def number_of(self, time: float) -> int:
        """Return the interval in which a time lies."""
        time = max(-GREATEST_SECONDS, min(time, GREATEST_SECONDS))
        number = math.floor(time / self._seconds)
        # The quotient may have been rounded up or down to a whole number.
        number += ((number + 1) * self._seconds <= time) - (number * self._seconds > time)
        return min(number, self._last)

    def begin_of(self, number: int) -> float:
        """Return the time, in seconds, at which an interval begins."""
        return number * self._seconds

    def end_of(self, number: int | None) -> float:
        """Return the time, in seconds, before which the records of an interval lie."""
        if number is None:
            return -math.inf
        return math.inf if number == self._last else (number + 1) * self._seconds

    def is_held(self, split: Progress, number: int | None) -> bool:
        """Whether a split has left an interval behind, so that it is not read on."""
        return split.reached is not None and split.reached >= self.end_of(number)

    def is_over(self, number: int | None, splits: Mapping[Place, Progress]) -> bool:
        """Whether an interval is over, now that no split has more of it: the next one that has any is known."""
        held = {place: self.is_held(split, number) for place, split in splits.items() if not split.end}
        return any(held.values()) and all(is_held or self.is_idle(place) for place, is_held in held.items())

    def after(self, number: int | None, splits: Iterable[Progress]) -> int:
        """Return the interval of the earliest record that is held: those between have none."""
        held = [split for split in splits if not split.end and self.is_held(split, number)]
        return min(self.number_of(split.reached) for split in held if split.reached is not None)

    def heard(self, place: Place) -> None:
        """Note that a split has something."""
        self._silent_seconds.pop(place, None)

    def listened(self, places: Iterable[Place], seconds: float) -> None:
        """Note that somebody has listened for so long to splits that had nothing."""
        for place in places:
            self._silent_seconds[place] = self._silent_seconds.get(place, 0.0) + seconds

    def is_idle(self, place: Place) -> bool:
        """Whether a split is not waited for."""
        return self._silent_seconds.get(place, -1.0) >= self._idle_seconds

    def all_idle(self, splits: Mapping[Place, Progress]) -> bool:
        """Whether nobody waits for anything any more, so that what there is of an interval is not kept waiting."""
        return all(split.end or self.is_idle(place) for place, split in splits.items())
