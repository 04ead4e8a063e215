"""Who may interrupt whom on a processor: what serves a computation does not interrupt it.

A thread that wakes on Linux may take the processor from the one that runs, though another processor is free a moment
later. A run consists of one thread that computes and dozens that wake a thousand times a second to pass messages on;
so the latter are scheduled as "batch": they get as much of a processor as before, but wait for their turn. Elsewhere
than on Linux, and where a sandbox forbids it, nothing changes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


def process_gives_way() -> None:
    """Let all threads of this process give way, and those that they will start."""
    if sys.platform == "linux":
        for thread in Path("/proc/self/task").iterdir():
            _change(int(thread.name), os.SCHED_OTHER, os.SCHED_BATCH)


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """Let the calling thread give way within the block, and for good the threads and processes that it starts there."""
    thread = threading.get_native_id()
    changed = sys.platform == "linux" and _change(thread, os.SCHED_OTHER, os.SCHED_BATCH)
    try:
        yield
    finally:
        if changed:
            _change(thread, os.SCHED_BATCH, os.SCHED_OTHER)


def take_precedence() -> None:
    """Let the calling thread interrupt those that give way, and the threads that it will start.

    For an actor on whose calls a stream waits: called where it starts, for its calls run in the same thread.
    """
    if sys.platform == "linux":
        _change(threading.get_native_id(), os.SCHED_BATCH, os.SCHED_OTHER)


def _change(thread: int, before: int, after: int) -> bool:
    """Change a thread's policy if it is ``before``; return whether it was. Another one is somebody's choice."""
    # A thread may have ended, and a sandbox may forbid it: that costs some speed, nothing else.
    with contextlib.suppress(OSError):
        if os.sched_getscheduler(thread) == before:
            os.sched_setscheduler(thread, after, os.sched_param(0))
            return True
    return False
