"""Whether a second thread would find a processor free, by how long the first has waited for one.

While processors are free a second thread takes a quarter off an epoch. When all are busy it saves nothing, and takes
from the others what waking it and waiting for it cost. The times of the work itself do not tell the two apart, for a
second thread also gets a second share of busy processors; how long threads stand in line for a processor does.
"""

from __future__ import annotations

CROWDED_SHARED, CROWDED_ALONE = 0.25, 0.06
"""From which share of its time spent in line on, a thread finds the processors busy: beside a second thread of its
own, which stands in line, too, and alone."""
EPOCHS = 8
"""How many epochs it takes to tell."""
_TIMES = "/proc/thread-self/schedstat"
"""Nanoseconds that the thread which reads this has run, and has waited to run; on Linux."""


class Crowding:
    """Tells whether work is to be shared with other threads, from epoch to epoch."""

    def __init__(self) -> None:
        self.shares = True
        self._ran, self._waited = _times()
        self._epochs = 0
        self._spent = [0, 0]

    def look(self) -> None:
        """Learn how long the calling thread has waited since the last call; for the thread that closes epochs."""
        ran, waited = _times()
        self.learn(ran - self._ran, waited - self._waited)
        self._ran, self._waited = ran, waited

    def learn(self, ran: int, waited: int) -> None:
        """Learn for how many nanoseconds the thread ran, and waited to run, in an epoch."""
        self._spent = [self._spent[0] + ran, self._spent[1] + waited]
        self._epochs += 1
        if self._epochs == EPOCHS:
            share = self._spent[1] / max(1, sum(self._spent))
            self.shares = share <= (CROWDED_SHARED if self.shares else CROWDED_ALONE)
            self._epochs, self._spent = 0, [0, 0]


def _times() -> tuple[int, int]:
    try:
        with open(_TIMES) as file:
            ran, waited, _ = map(int, file.read().split())
    except (OSError, ValueError):
        return 0, 0
    return ran, waited
