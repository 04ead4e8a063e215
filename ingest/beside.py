"""Doing something that may take long in a thread of its own, so that whoever needs it can look after others."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")

GRACE_SECONDS = 0.05
"""What takes no longer than this is waited for."""


class Beside(Generic[Result]):
    """Something that is being done.

    The thread does not keep the process from ending.

    Parameters
    ----------
    do
        Returns the result, or raises what `result` raises.
    """

    def __init__(self, do: Callable[[], Result]) -> None:
        self._do = do
        self._is_over = threading.Event()
        self._results: list[Result] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="beside", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Wait until it is done, but no longer than so many seconds; tell whether it is."""
        return self._is_over.wait(seconds)

    def result(self) -> Result:
        """Return the result, once it is done."""
        self._is_over.wait()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._do())
        except BaseException as error:
            self._error = error
        finally:
            self._is_over.set()
