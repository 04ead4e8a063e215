"""How large an epoch is made so that answers are only so stale; no clock but the one it is given, no Ray.

The *staleness* of an epoch is the time from when the first of its records could have been read to its answer. It is
what one waits for the records of the epoch, and for the answers before it, and what the epoch itself costs: something
for each epoch, and something for each record. So an epoch is closed as late as the target allows, for few epochs cost
less than many; where that moment has passed it takes all that waits, so that under more load than can be borne epochs
grow to the largest there is, which is what gets the most done.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

_DECAY = 0.85
"""What an answer counts when the next one has come: about seven are remembered."""
_DOUBTS = 2.0
"""How many mean errors of its predictions an epoch is expected to take longer."""
_AIM = 0.9
"""The part of the target that is aimed at; the rest is for what nobody foresees."""
_SECONDS_PER_RECORD = 1e-5
_SPREAD_RECORDS = 1000.0
"""What a record is taken to cost until the sizes of epochs have differed by about so many."""


class CostModel:
    """What an epoch costs: a line through what the last ones have, by their size.

    Older epochs count less and less. Where all had one size, what a record adds cannot be seen, and is assumed.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._records = self._seconds = 0.0
        self._variance = self._covariance = 0.0
        self._error = 0.0  # relative, mean

    def learn(self, records: int, seconds: float) -> None:
        """Take in an epoch of so many records that has cost so much."""
        expected = self._line(records)
        if self._weight and expected:
            self._error += (1 - _DECAY) * (abs(seconds / expected - 1) - self._error)
        # Mean, variance and covariance of a weighted sample, moved on by one observation.
        self._weight = _DECAY * self._weight + 1
        share = 1 / self._weight
        off_records, off_seconds = records - self._records, seconds - self._seconds
        self._records += share * off_records
        self._seconds += share * off_seconds
        self._variance = (1 - share) * (self._variance + share * off_records**2)
        self._covariance = (1 - share) * (self._covariance + share * off_records * off_seconds)

    def seconds(self, records: int) -> float | None:
        """Return what an epoch is expected to cost, rather too much than too little; None where none is known."""
        return self._line(records) * (1 + _DOUBTS * self._error) if self._weight else None

    def _line(self, records: int) -> float:
        assumed = _SPREAD_RECORDS**2
        slope = (self._covariance + assumed * _SECONDS_PER_RECORD) / (self._variance + assumed)
        slope = max(0.0, slope)
        return max(0.0, self._seconds - slope * self._records) + slope * records


class Pacing:
    """Closes epochs for a target of staleness; an `ingest.schedule.Closing`.

    It is told of answers from another thread than that which reads.

    Parameters
    ----------
    target_seconds
        How stale an answer may be.
    clock
        Returns Unix seconds.
    """

    due = None

    def __init__(self, target_seconds: float, clock: Callable[[], float]) -> None:
        self._target = target_seconds
        self._clock = clock
        self._costs = CostModel()
        self._told: deque[tuple[int, float]] = deque()
        self._unanswered: deque[tuple[int, int, float]] = deque()
        self._answered_at = -math.inf
        self._close_at = math.inf
        self._began = clock()
        self._late: bool | None = None

    def begin(self) -> None:
        """Begin to read an epoch."""
        self._began = self._clock()
        self.next()

    @property
    def seconds_left(self) -> float:
        """Seconds until the epoch that is read closes, if nothing comes."""
        return max(0.0, self._close_at - self._clock())

    def is_over(self, *, idle: bool, records: int, since: float | None) -> bool:
        """Whether the epoch closes now; see `ingest.schedule.Closing`."""
        if since is None:
            return False
        self._take_in()
        now = self._clock()
        # Behind epochs that are not answered yet it would only wait; so it goes on growing.
        self._close_at = max(self._free_at(), since + _AIM * self._target - self._expected(records))
        if self._late is None:
            self._late = now >= self._close_at
        if self._late and not idle:
            # What waits is taken along, but for no longer than the target: reading may be what is slow.
            return now >= max(self._close_at, self._began + self._target)
        return now >= self._close_at

    def next(self) -> None:
        """Go on to the next epoch."""
        self._close_at, self._late = math.inf, None

    def closed(self, epoch: int, records: int) -> None:
        """Note that an epoch of so many records has been closed now."""
        self._unanswered.append((epoch, records, self._clock()))

    def answered(self, epoch: int, at: float) -> None:
        """Note, from any thread, that an epoch has been answered at this Unix time."""
        self._told.append((epoch, at))

    def _take_in(self) -> None:
        while self._told:
            epoch, at = self._told.popleft()
            # What a reader before this one has closed is not known here, and teaches nothing.
            while self._unanswered and self._unanswered[0][0] <= epoch:
                number, records, closed_at = self._unanswered.popleft()
                if number == epoch:
                    self._costs.learn(records, max(0.0, at - max(closed_at, self._answered_at)))
            self._answered_at = max(self._answered_at, at)

    def _free_at(self) -> float:
        """Return when all epochs that are closed are expected to be answered."""
        free = self._answered_at
        for _, records, closed_at in self._unanswered:
            free = max(free, closed_at) + self._expected(records)
        return free

    def _expected(self, records: int) -> float:
        """Return what an epoch is expected to cost; before the first answer, half of the target."""
        seconds = self._costs.seconds(records)
        return self._target / 2 if seconds is None else seconds
