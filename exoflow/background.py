"""Work behind the stream gives way to the work that answers wait for.

On a machine with few processors what is written and merged behind an answer delays the next one. Linux has a priority
for each thread; elsewhere nothing changes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

GIVE_WAY = 10
"""For what is written behind: soon, but after whatever computes an answer."""
LAST = 19
"""For what only keeps things small: whenever there is time."""


def give_way(niceness: int = GIVE_WAY) -> None:
    """Lower the priority of the calling thread; 19 is the lowest. It cannot be raised again."""
    if sys.platform == "linux":
        # A sandbox that forbids it costs some speed, nothing else.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
