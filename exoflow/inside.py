"""Attempts that run inside the owner's own process: short ones that only put small values together.

A task that takes microseconds costs milliseconds of processor time where Ray looks for a process that runs it. Such
attempts run here one after the other, in one thread, each as soon as its inputs are there.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from exoflow.worker import Unavailable

WhenDone = Callable[[Any, Callable[[Any], None]], None]
"""Has a function called with what a reference has become: a value, or an exception."""
Run = Callable[[Sequence[Any]], tuple[Any, Any]]
"""Runs an attempt on its inputs; returns its value and its outcome."""


class OwnValue:
    """What an attempt inside the owner has made, once it has; ``wanted`` says that it is still worth making."""

    def __init__(self) -> None:
        self.value: Any = Unavailable()
        self.wanted = True


class Inside:
    """Runs attempts inside this process.

    Parameters
    ----------
    when_done : callable
        How to learn what Ray's references have become.
    lost : type of exception
        What a reference has become whose value never comes.
    fail : callable
        Is told what nobody has foreseen; attempts go on behind it.
    """

    def __init__(self, when_done: WhenDone, lost: type[BaseException], fail: Callable[[BaseException], None]) -> None:
        self._when_done = when_done
        self._lost = lost
        self._fail = fail
        self._closed = False
        self._ready: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="exoflow-inside", daemon=True)
        self._thread.start()

    def start(self, run: Run, inputs: Sequence[Any], result: OwnValue, tell: Callable[[Any], None]) -> None:
        """Run an attempt as soon as its inputs are there.

        Parameters
        ----------
        run : callable
            The attempt.
        inputs : sequence
            References, and of attempts that have run inside the owner their `OwnValue`.
        result : OwnValue
            Gets the attempt's value.
        tell : callable
            Gets its outcome, or the exception that one of the inputs is, or None where it was not wanted any more; in
            another thread.
        """
        values = [given.value if isinstance(given, OwnValue) else None for given in inputs]
        references = [(index, given) for index, given in enumerate(inputs) if not isinstance(given, OwnValue)]
        missing = _Countdown(len(references), lambda: self._ready.put(lambda: self._run(run, values, result, tell)))

        def arrived(index: int, value: Any) -> None:
            values[index] = value
            missing.one_less()

        for index, reference in references:
            self._when_done(reference, functools.partial(arrived, index))

    def close(self, seconds: float) -> None:
        """Run nothing more, and wait a while for what runs."""
        self._closed = True
        self._ready.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (work := self._ready.get()) is not None and not self._closed:
            try:
                work()
            except Exception as error:
                self._fail(error)
            del work  # it holds inputs

    def _run(self, run: Run, values: Sequence[Any], result: OwnValue, tell: Callable[[Any], None]) -> None:
        if not result.wanted:
            tell(None)
            return
        broken = next((value for value in values if isinstance(value, self._lost)), None)
        if broken is not None:
            tell(broken)
            return
        try:
            result.value, outcome = run(values)
        except BaseException as error:  # what would end a process of its own, such as SystemExit
            tell(error)
        else:
            tell(outcome)


class _Countdown:
    """Does something once a number of things have happened, in whatever threads they do."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._count = count
        self._then = then
        if count == 0:
            then()

    def one_less(self) -> None:
        with self._lock:
            self._count -= 1
            ended = self._count == 0
        if ended:
            self._then()
