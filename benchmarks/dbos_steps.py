"""DBOS beside the engine: a process that runs no-op steps when told to, and says how long they took.

``python dbos_steps.py DATABASE_URL`` answers each line ``wide N`` or ``chain N`` on its input with seconds.
Wide: one workflow that starts all N steps at once with `asyncio.gather`, its way to run steps side by side;
their records are written by its own threads. Chain: N steps awaited one after the other.
"""

from __future__ import annotations

import asyncio
import sys
import time

from dbos import DBOS


@DBOS.step()
async def nothing(*_: int) -> int:
    """Do nothing."""
    return 0


@DBOS.workflow()
async def wide(steps: int) -> int:
    """Run steps side by side."""
    return len(await asyncio.gather(*(nothing() for _ in range(steps))))


@DBOS.workflow()
async def chain(steps: int) -> int:
    """Run steps one after the other."""
    value = 0
    for _ in range(steps):
        value = await nothing(value)
    return value


def main(url: str) -> None:
    """Serve until the input ends."""
    DBOS(config={"name": "bench", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})
    DBOS.launch()
    shapes = {"wide": wide, "chain": chain}
    for line in sys.stdin:
        shape, steps = line.split()
        began = time.perf_counter()
        asyncio.run(shapes[shape](int(steps)))
        print(time.perf_counter() - began, flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    main(sys.argv[1])
