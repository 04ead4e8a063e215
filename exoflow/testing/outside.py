"""The world outside the engine: a service that has effects under keys and remembers all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import random
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from exoflow.effects import Cure, Done, NotDone, Unknown


class Break(enum.Enum):
    """How a body ends that does not return."""

    BEFORE = "it raises before its effect"
    AFTER = "it raises after its effect"
    VOUCHED = "it raises EffectNotDone"


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened outside: an effect under a key, or (without ``cure``) its undoing.

    ``at`` is the length of the write log at that moment.
    """

    at: int
    task: str
    key: str
    cure: Cure | None
    value: Any = None


@dataclasses.dataclass(slots=True)
class Applied:
    """What happened under one key.

    ``values`` are all that were applied, in order; ``undone`` says that the effect was taken back.
    """

    task: str
    cure: Cure
    values: list[Any] = dataclasses.field(default_factory=list)
    undone: bool = False


class Outside:
    """An outside service. One per process: bodies find it as `outside`, and a run begins by `reset`.

    Attributes
    ----------
    effects : dict
        What happened under each key.
    unsure : float
        How often the service cannot say what became of a key.
    closed : bool
        While it is, some bodies raise whenever they run: what they need is out of order.
    unclear : set of str
        Keys under which a body broke off without saying that it had no effect.
    """

    def __init__(self) -> None:
        self.reset(random.Random(0), 0.0)

    def reset(self, chooser: random.Random, unsure: float) -> None:
        """Forget everything."""
        self.effects: dict[str, Applied] = {}
        self.events: list[Event] = []
        self.log: Sized = ()
        self.draws = 0
        self.unsure = unsure
        self.closed = False
        self.unclear: set[str] = set()
        self._break: Break | None = None
        self._random = chooser

    @contextlib.contextmanager
    def breaking(self, how: Break | None) -> Iterator[None]:
        """Let the body that runs inside end in this way."""
        self._break = how
        try:
            yield
        finally:
            self._break = None

    def breaks(self, how: Break) -> bool:
        """Return whether the running body is to end in this way."""
        return self._break is how

    def replay(self, events: Iterable[Event]) -> None:
        """Forget everything but these events."""
        self.effects, self.events = {}, []
        for event in events:
            self._happen(event)

    def draw(self) -> int:
        """Return a number that nobody has got before: what makes a body nondeterministic."""
        self.draws += 1
        return self.draws

    def apply(self, task: str, key: str, cure: Cure, value: Any) -> None:
        """Have an effect."""
        self._happen(Event(len(self.log), task, key, cure, value))

    def _happen(self, event: Event) -> None:
        self.events.append(event)
        if event.cure is None:
            if event.key in self.effects:
                self.effects[event.key].undone = True
            return
        known = self.effects.setdefault(event.key, Applied(event.task, event.cure))
        known.values.append(event.value)
        known.undone = False

    def resolve(self, key: str) -> Done | NotDone | Unknown:
        """Say what became of an effect."""
        if self._random.random() < self.unsure:
            return Unknown()
        known = self.effects.get(key)
        return NotDone() if known is None or known.undone else Done(known.values[-1])

    def undo(self, key: str) -> None:
        """Take an effect back; harmless where there is none."""
        self._happen(Event(len(self.log), "", key, None))


outside = Outside()
