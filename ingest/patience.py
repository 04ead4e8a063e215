"""Waiting for a service that does not answer: longer each time, never in step with others, and not for ever."""

import random
import time
from collections.abc import Callable

from ingest.source import SourceError

FIRST_DELAY_SECONDS = 0.1
MAX_DELAY_SECONDS = 5.0
TELL_SECONDS = 10.0
"""Between two lines that say that it is still being waited for."""


class PatienceExhausted(Exception):
    """The service has not answered for as long as one was ready to wait."""


class Patience:
    """Follows whether a service answers.

    Parameters
    ----------
    service
        Its name, for what is told.
    seconds
        How long to wait for it.
    tell
        Gets a line when waiting begins, goes on and ends.
    clock, jitter
        Seconds that never go back; a factor from 0 to 1.
    """

    def __init__(
        self,
        service: str,
        seconds: float,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._service = service
        self._seconds = seconds
        self._tell = tell
        self._clock = clock
        self._jitter = jitter
        self._since: float | None = None
        self._told_at = 0.0
        self._delay = FIRST_DELAY_SECONDS

    def answered(self) -> None:
        """Note that the service works."""
        if self._since is not None:
            self._tell(f"{self._service} is back after {self._clock() - self._since:.1f} s")
            self._since, self._delay = None, FIRST_DELAY_SECONDS

    def failed(self, reason: object) -> float:
        """Note that it does not, and return for how many seconds to leave it alone.

        Raises
        ------
        PatienceExhausted
            When it has not answered for too long.
        """
        now = self._clock()
        if self._since is None:
            self._since, self._told_at = now, now
            self._tell(f"waiting for {self._service}: {reason}")
        waited = now - self._since
        if waited >= self._seconds:
            message = f"{self._service} has not answered for {waited:.0f} s: {reason}"
            raise PatienceExhausted(message)
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            self._tell(f"waiting for {self._service} since {waited:.0f} s: {reason}")
        delay = self._delay * (0.5 + self._jitter() / 2)
        self._delay = min(2 * self._delay, MAX_DELAY_SECONDS)
        return min(delay, max(0.0, self._seconds - waited))


def seconds_until_retry(patience: Patience, uri: str, error: Exception) -> float:
    """Return for how many seconds to leave alone what a source is read from.

    Raises
    ------
    SourceError
        It has not answered for as long as one was ready to wait.
    """
    try:
        return patience.failed(error)
    except PatienceExhausted as exhausted:
        detail = f"{exhausted}. Nothing is lost: resume when it is back (patience=SECONDS in the URI says how long)"
        raise SourceError(uri, detail) from error
