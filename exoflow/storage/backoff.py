"""Trying again: when, and for how long."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, slots=True)
class Backoff:
    """Tries with random pauses between them: any length up to a limit that doubles.

    Many clients that a server has turned away at once come back spread out (full jitter).

    Attributes
    ----------
    tries : int
        At most so many.
    first_seconds, longest_seconds : float
        Limit of the first pause, and of any.
    total_seconds : float
        No try begins later than this after the first one began.
    """

    tries: int = 8
    first_seconds: float = 0.1
    longest_seconds: float = 5.0
    total_seconds: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random.uniform

    def run(self, attempt: Callable[[], Answer], passes: Callable[[Exception], bool]) -> Answer:
        """Return what ``attempt`` returns; an error is raised once it will not pass or the tries are over."""
        began = self.clock()
        for number in range(self.tries):
            try:
                return attempt()
            except Exception as error:
                pause = self.uniform(0.0, min(self.longest_seconds, self.first_seconds * 2**number))
                last = number == self.tries - 1 or self.clock() + pause > began + self.total_seconds
                if last or not passes(error):
                    raise
            self.sleep(pause)
        raise AssertionError
