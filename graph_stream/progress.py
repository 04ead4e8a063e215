"""One line on stderr that tells how a run is doing, and the rates of this process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, TextIO

from graph_stream import memory
from graph_stream.config import RunConfig

_SECONDS_BETWEEN_LINES = 0.2
_SECONDS_BETWEEN_WARNINGS = 30.0
BEHIND_SECONDS = 1.0
"""From this on an epoch is behind its schedule, not just late by chance."""
SECONDS_TO_CATCH_UP = 10.0
"""For so long a run may be behind without a word: when it starts, or after a burst."""


class Meter:
    """Follows the epochs that this process publishes.

    Parameters
    ----------
    stream : TextIO
        Where the line goes; nothing is written unless it is a terminal.
    max_memory : int, optional
        The run's limit in bytes, to be shown beside what it uses.

    """

    def __init__(self, stream: TextIO, max_memory: int | None = None) -> None:
        self._paced = False
        self._target_staleness: float | None = None
        self._max_memory = max_memory
        self._behind_since: float | None = None
        self._told_behind_at = -math.inf
        self._stream = stream
        self._shows = stream.isatty()
        self._shown_at = 0.0
        self._records = 0
        self._began: float | None = None
        self._ended = 0.0

    def follow(self, config: RunConfig) -> None:
        """Learn what the run has promised to keep to: a schedule, so that an epoch can be behind it, or a target."""
        self._paced, self._target_staleness = config.is_paced, config.target_staleness

    def published(self, row: Mapping[str, Any]) -> None:
        """Take in the row of a published epoch."""
        self._records += row["records"]
        self._began = min(self._began or row["read_started"], row["read_started"])
        self._ended = max(self._ended, row["published_at"])
        now = time.monotonic()
        behind = self._behind(row)
        if not behind:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        elif (
            now - self._behind_since >= SECONDS_TO_CATCH_UP and now - self._told_behind_at >= _SECONDS_BETWEEN_WARNINGS
        ):
            self._told_behind_at = now
            self.tell(f"epoch {row['epoch']} {behind}: the source waits, nothing is dropped")
        if self._shows and now - self._shown_at >= _SECONDS_BETWEEN_LINES:
            self._shown_at = now
            self._show(row)

    def _behind(self, row: Mapping[str, Any]) -> str:
        """Return in what way an epoch has not kept to what the run has promised; empty where it has."""
        if self._target_staleness is not None and "staleness_ms" in row:
            staleness = row["staleness_ms"] / 1e3
            if staleness > self._target_staleness:
                return f"was answered {staleness:.1f} s after its first record could be read"
        elif self._paced and row["wait_ms"] >= BEHIND_SECONDS * 1e3:
            return f"began {row['wait_ms'] / 1e3:.1f} s behind its schedule"
        return ""

    def tell(self, text: str) -> None:
        """Write a line of its own, also where no progress is shown."""
        clear = "\r\x1b[K" if self._shows and self._shown_at else ""
        self._stream.write(f"{clear}{text}\n")
        self._stream.flush()

    def rates(self) -> dict[str, float]:
        """Return ``seconds`` from the first record read to the last publish, and ``edges_per_second``."""
        seconds = 0.0 if self._began is None else self._ended - self._began
        return {"seconds": seconds, "edges_per_second": self._records / seconds if seconds > 0 else 0.0}

    def close(self) -> None:
        """Leave the line, so that what follows begins on a new one."""
        if self._shows and self._shown_at:
            self._stream.write("\n")
            self._stream.flush()

    def _show(self, row: Mapping[str, Any]) -> None:
        latency_ms = (row["published_at"] - row["scheduled_time"]) * 1e3
        line = (
            f"epoch {row['epoch']}  {row['total_records']:,} edges  {self.rates()['edges_per_second']:,.0f}/s  "
            f"latency {latency_ms:.1f} ms  error bound {row['error_bound']:.1e}"
        )
        if "staleness_ms" in row:
            line += f"  {row['staleness_ms']:,.0f} ms stale"
        elif self._paced and row["wait_ms"] >= BEHIND_SECONDS * 1e3:
            line += f"  {row['wait_ms'] / 1e3:.1f} s behind"
        if row.get("late"):
            line += f"  {row['late']:,} late"
        if self._max_memory is not None:
            used = row["memory_bytes"]
            slowed = ", slowed down" if memory.delay_seconds(used, self._max_memory) else ""
            line += f"  memory {memory.shown(used)} of {memory.shown(self._max_memory)}{slowed}"
        self._stream.write(f"\r\x1b[K{line}")
        self._stream.flush()
