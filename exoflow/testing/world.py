"""One seed decides everything: which of the things that could happen now happens next.

A *process* is somebody who can die or stand still. A *happening* is a thing that may happen to one, once. A
protocol (`exoflow.steps`) runs by turning each of its operations into happenings: the operation lands in the
store, and its answer arrives. What has left for the store belongs to nobody: it may land although its sender
is dead. Order is chosen among all that is due; time passes a little with each happening, and jumps when
nothing is due.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from exoflow.errors import ExoflowError, StorageUnavailable
from exoflow.steps import Delete, Get, List, Pause, Put, PutIfAbsent, Steps, StoreStep, operate
from exoflow.storage import Store
from exoflow.testing.faults import CALM, LEASE_SECONDS, Faults
from exoflow.testing.writelog import LogEntry

T = TypeVar("T")
_SECONDS_PER_STEP = 0.01
_TIMEOUT_SECONDS = 2.0


class Violation(AssertionError):
    """The engine broke a promise; found by an oracle, never raised by the engine."""


class Process:
    """Somebody who can die, or stand still for a while."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.deferred: list[Happening] = []


class Happening:
    """A thing that may happen: to ``process``, or to nobody when that is None; ``origin`` has sent it."""

    __slots__ = ("act", "origin", "process")

    def __init__(self, process: Process | None, act: Callable[[], None], origin: Process | None = None) -> None:
        self.process = process
        self.act = act
        self.origin = origin


class _Fate(enum.Enum):
    DONE = enum.auto()
    REFUSED = enum.auto()
    UNANSWERED = enum.auto()
    LATE = enum.auto()
    TORN = enum.auto()


class World:
    """Time, chance, a store, and everything that is about to happen.

    Parameters
    ----------
    store : Store
        What operations work on when they land.
    seed : int
        Decides everything.
    faults : Faults
        What goes wrong; `calm` ends all of it.

    Attributes
    ----------
    now : float
        Unix seconds.
    log : list of LogEntry
        Every write as it began, landed or was dropped, and every deletion.
    trace : list of str
        What has happened, one line each; only if asked for.
    """

    def __init__(self, store: Store, seed: int, faults: Faults) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 1000.0
        self.steps = 0
        self.log: list[LogEntry] = []
        self.trace: list[str] | None = None
        self.landing: list[Callable[[StoreStep, bytes | None], None]] = []
        self._writes = itertools.count()
        self._due: list[Happening] = []
        self._timers: list[tuple[float, int, Happening]] = []
        self._order = itertools.count()

    # --- time and chance --------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """Return whether something of that probability happens."""
        return probability > 0.0 and self.random.random() < probability

    def calm(self) -> None:
        """End all faults; what they have begun goes on."""
        self.faults = CALM

    def later(
        self,
        process: Process | None,
        act: Callable[[], None],
        *,
        seconds: float = 0.0,
        origin: Process | None = None,
    ) -> None:
        """Let something happen to a process, after ``seconds`` at the earliest."""
        happening = Happening(process, act, origin)
        if seconds > 0.0:
            heapq.heappush(self._timers, (self.now + seconds, next(self._order), happening))
        else:
            self._due.append(happening)

    def delay(self) -> float:
        """Return for how many seconds an operation or a message is held up."""
        return self.random.random() * 2 * LEASE_SECONDS if self.chance(self.faults.slow) else 0.0

    def step(self) -> bool:
        """Let one thing happen; return False when nothing can happen any more."""
        while True:
            while self._timers and self._timers[0][0] <= self.now:
                self._due.append(heapq.heappop(self._timers)[2])
            if not self._due:
                if not self._timers:
                    return False
                self.now = self._timers[0][0]
                continue
            place = int(self.random.random() * len(self._due))
            happening = self._due[place]
            self._due[place] = self._due[-1]
            self._due.pop()
            process = happening.process
            if process is not None and not process.alive:
                continue
            if process is not None and process.paused:
                process.deferred.append(happening)
                continue
            self.now += self.random.random() * _SECONDS_PER_STEP
            self.steps += 1
            happening.act()
            return True

    def note(self, line: str) -> None:
        """Add a line to the trace, if there is one."""
        if self.trace is not None:
            self.trace.append(f"{self.now:10.3f} {line}")

    # --- processes --------------------------------------------------------------------------------------

    def kill(self, process: Process) -> None:
        """End a process; of what it has sent to the store, any part may still land."""
        self.note(f"{process.name} dies")
        process.alive = False
        process.deferred.clear()
        lost = {id(each) for each in self._in_flight(process) if self.random.random() < 0.5}
        self._due = [each for each in self._due if id(each) not in lost]
        self._timers = [each for each in self._timers if id(each[2]) not in lost]
        heapq.heapify(self._timers)

    def _in_flight(self, process: Process) -> list[Happening]:
        everything = [*self._due, *(each for _, _, each in sorted(self._timers, key=lambda timer: timer[:2]))]
        return [each for each in everything if each.process is None and each.origin is process]

    def pause(self, process: Process, seconds: float) -> None:
        """Let a process stand still; what happens to it meanwhile waits."""
        self.note(f"{process.name} stands still")
        process.paused = True
        self.later(None, partial(self._resume, process), seconds=seconds)

    def _resume(self, process: Process) -> None:
        process.paused = False
        self._due += process.deferred
        process.deferred.clear()

    # --- protocols and the store ------------------------------------------------------------------------

    def run(
        self, process: Process, steps: Steps[T], then: Callable[[T], None], failed: Callable[[ExoflowError], None]
    ) -> None:
        """Run a protocol of a process; its end is told to ``then``, an error of the engine to ``failed``."""

        def proceed(answer: Any = None, failure: StorageUnavailable | None = None) -> None:
            try:
                step = steps.send(answer) if failure is None else steps.throw(failure)
            except StopIteration as end:
                then(end.value)
            except ExoflowError as error:
                failed(error)
            else:
                self.begin(process, step, proceed)

        proceed()

    def begin(self, process: Process, step: StoreStep, answer: Callable[..., None]) -> None:
        """Send an operation to the store; ``answer(value)`` or ``answer(None, error)`` follows, if anything does."""
        if isinstance(step, Pause):
            self.later(process, answer, seconds=step.seconds)
            return
        fate = self._fate(step)
        error = StorageUnavailable(getattr(step, "key", ""), f"simulated: {fate.name.lower()}")
        number = -1
        if isinstance(step, Put | PutIfAbsent):
            number = next(self._writes)
            self.log.append(LogEntry("begin", number, step.key, step.data))

        def land() -> None:
            if fate is _Fate.REFUSED:
                self._drop(step, number)
                self.later(process, partial(answer, None, error))
                return
            value = self._land(step, number, torn=fate is _Fate.TORN)
            if fate is _Fate.DONE:
                self.later(process, partial(answer, value), seconds=self.delay())
            elif fate is not _Fate.LATE:
                self.later(process, partial(answer, None, error))

        held_up = self.delay()
        if fate is _Fate.LATE:
            self.later(process, partial(answer, None, error), seconds=_TIMEOUT_SECONDS)
            held_up = _TIMEOUT_SECONDS + self.random.random() * 2 * LEASE_SECONDS
        self.later(None, land, seconds=held_up, origin=process)

    def _fate(self, step: StoreStep) -> _Fate:
        faults = self.faults
        if faults is CALM:
            return _Fate.DONE
        if self.chance(faults.refuse):
            return _Fate.REFUSED
        if isinstance(step, Get | List):
            return _Fate.DONE
        if self.chance(faults.unanswered):
            return _Fate.UNANSWERED
        if self.chance(faults.late):
            return _Fate.LATE
        if isinstance(step, Put) and "/blobs/" in step.key and self.chance(faults.torn):
            return _Fate.TORN
        return _Fate.DONE

    def _drop(self, step: StoreStep, number: int) -> None:
        if number >= 0:
            assert isinstance(step, Put | PutIfAbsent)
            self.log.append(LogEntry("drop", number, step.key))

    def _land(self, step: StoreStep, number: int, *, torn: bool) -> Any:
        if self.trace is not None and not isinstance(step, Get | List):
            self.note(f"{type(step).__name__} {_without_marks(getattr(step, 'key', ''))}{' torn' if torn else ''}")
        if isinstance(step, Get | List):
            return operate(step, self.store)
        if isinstance(step, Delete):
            self._tell(step, None)
            self.log.append(LogEntry("delete", -1, step.key))
            return operate(step, self.store)
        assert isinstance(step, Put | PutIfAbsent)
        if torn:
            step = Put(step.key, step.data[: len(step.data) // 2])
        value = operate(step, self.store)
        if value is False or torn:
            self._drop(step, number)
        else:
            self.log.append(LogEntry("land", number, step.key))
            self._tell(step, step.data)
        return value

    def _tell(self, step: StoreStep, data: bytes | None) -> None:
        for watcher in self.landing:
            watcher(step, data)


def _without_marks(key: str) -> str:
    """Return a key without the random mark of a blob's writer: a trace must be the same every time."""
    folder, separator, name = key.partition("/blobs/")
    return f"{folder}{separator}{name.split('-')[0]}" if separator else key
