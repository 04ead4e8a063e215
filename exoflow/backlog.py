"""Attempts in front of Ray: how many to hand over, and which short ones travel together. Pure.

Submitting a task costs Ray about half a millisecond, so bodies that take less than that are better run
several at a time. How long a body takes is not known before some have run. So attempts that could not run
yet anyway, because every slot of the cluster has work waiting for it, wait here; when there is room again,
those of a kind that has proven short leave as one bundle.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Hashable, Sequence

SUBMISSIONS_PER_SLOT = 4
SHORT_SECONDS = 0.002
BUNDLE_SECONDS = 0.01
BUNDLE_TASKS = 32
_MEMORY = 0.3

Name = tuple[str, int]


@dataclasses.dataclass(slots=True)
class _Kind:
    """Attempts that run the same code with the same resources."""

    slots: float
    waiting: deque[Name] = dataclasses.field(default_factory=deque)
    submitted: int = 0
    mean_seconds: float | None = None

    def bundle(self) -> int:
        """Return how many attempts the next submission takes; never so many that a slot would stay empty."""
        if self.mean_seconds is None or self.mean_seconds > SHORT_SECONDS:
            return 1
        share = math.ceil(len(self.waiting) / (2 * self.slots))
        return min(BUNDLE_TASKS, share, max(1, int(BUNDLE_SECONDS / max(self.mean_seconds, 1e-6))))


class Backlog:
    """Decides what is submitted when.

    Parameters
    ----------
    cpus : float
        CPU slots of the cluster.
    """

    def __init__(self, cpus: float) -> None:
        self._cpus = max(cpus, 1.0)
        self._kinds: dict[Hashable, _Kind] = {}
        self._kind_of: dict[Name, Hashable] = {}

    def __contains__(self, name: Name) -> bool:
        """Whether an attempt waits here."""
        return name in self._kind_of

    def add(self, kind: Hashable, cpus_each: float, name: Name) -> None:
        """Let an attempt wait; each of its kind takes ``cpus_each`` CPU slots."""
        self._kinds.setdefault(kind, _Kind(self._cpus / cpus_each)).waiting.append(name)
        self._kind_of[name] = kind

    def drop(self, name: Name) -> None:
        """Forget an attempt that nobody wants any more."""
        kind = self._kind_of.pop(name, None)
        if kind is not None:
            self._kinds[kind].waiting.remove(name)

    def take(self) -> list[tuple[Hashable, list[Name]]]:
        """Return what to submit now: each entry one submission of one kind."""
        taken: list[tuple[Hashable, list[Name]]] = []
        for key, kind in self._kinds.items():
            while kind.waiting and kind.submitted < SUBMISSIONS_PER_SLOT * kind.slots:
                names = [kind.waiting.popleft() for _ in range(kind.bundle())]
                for name in names:
                    del self._kind_of[name]
                kind.submitted += 1
                taken.append((key, names))
        return taken

    def ended(self, key: Hashable, seconds: Sequence[float]) -> None:
        """Learn that a submission has ended, and how long each of its bodies took."""
        kind = self._kinds[key]
        kind.submitted -= 1
        for each in seconds:
            mean = each if kind.mean_seconds is None else kind.mean_seconds
            kind.mean_seconds = mean + _MEMORY * (each - mean)
