"""How much memory the graph may take: a stream that comes near the limit is slowed down, one that reaches it stops.

The limit is no part of a run's record, for it says something about a machine: each owner may be given another.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from graph_stream.errors import MemoryLimitReached

HINT = "max_memory_bytes"
"""Name of the limit among the hints of an owner."""
SLOW_FROM = 0.8
"""Share of the limit from which on epochs are delayed."""
MOST_DELAY_SECONDS = 1.0

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


class Memory(NamedTuple):
    """Memory of this process, in bytes."""

    resident: int
    peak: int
    """The most that was resident at once."""


def parse_size(text: str) -> int:
    """Return the bytes that ``8G``, ``512M`` or ``1.5 GiB`` stands for; units are powers of 1,024.

    Raises
    ------
    ValueError
        When it is no size, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    size = 0 if found is None else int(float(found[1]) * (1 << _UNITS[found[2].upper()]))
    if size <= 0:
        message = f"{text!r} is no size; say for example 8G or 512M"
        raise ValueError(message)
    return size


def measured() -> Memory:
    """Return the memory of this process, as the system counts it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Memory(*(int(status[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM")))


def delay_seconds(resident: int, limit: int) -> float:
    """Return how long to wait before an epoch: nothing far from the limit, a second at it."""
    return MOST_DELAY_SECONDS * min(max((resident / limit - SLOW_FROM) / (1 - SLOW_FROM), 0.0), 1.0)


class Budget:
    """What one member of a run may use.

    Parameters
    ----------
    limit : int or None
        Bytes for all members together; None for no limit.
    member, members : int
        Which member this is, and how many share the limit.
    measure, sleep : callable
        Where memory is read, and how to wait.
    """

    def __init__(
        self,
        limit: int | None,
        member: int,
        members: int,
        measure: Callable[[], Memory] = measured,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limit = None if limit is None else limit // members
        self._member = member
        self._measure = measure
        self._sleep = sleep

    def before_epoch(self, epoch: int, edges: int) -> None:
        """Wait if little is left; everything behind this epoch waits with it, back to the source.

        Raises
        ------
        MemoryLimitReached
            When nothing is left. The epoch was not begun.
        """
        if self._limit is None or not delay_seconds(self._measure().resident, self._limit):
            return
        # What is free in the process may go back to the system before anybody has to wait.
        give_back()
        resident = self._measure().resident
        if resident >= self._limit:
            message = (
                f"before epoch {epoch} partition {self._member} holds {edges:,} edges in {shown(resident)}, and its "
                f"share of --max-memory is {shown(self._limit)}; resume with a higher --max-memory, or on more "
                "machines with more --partitions"
            )
            raise MemoryLimitReached(message)
        self._sleep(delay_seconds(resident, self._limit))


def give_back() -> None:
    """Return memory that this process has freed, and keeps, to the system."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, other C libraries may not
    if trim is not None:
        trim(0)


def shown(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
