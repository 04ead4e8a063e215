"""What the dictionary of a run with names costs: memory, speed of its look-ups, time to write and to restore it.

    python benchmarks/names.py [--names 10000000]

Names are like those of a social network: 5 to 15 letters, digits and underscores. Memory is what the process holds
more than before, with nothing but the dictionary kept.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Iterator

import numpy as np

from graph_stream.namestore import Dictionary, Part, encode
from graph_stream.nametable import NameTable, warm_up
from graph_stream.naming import load_table
from ingest import Names, column_of

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789_", np.uint8)
SHORTEST, LONGEST = 5, 15
AT_ONCE = 1_000_000
LOOKED_UP = 20_000
"""Names of an epoch: both ends of 10,000 records."""


def some_names(count: int, seed: int) -> Names:
    """Return random names; short ones may repeat."""
    random = np.random.default_rng(seed)
    bounds = np.zeros(count + 1, np.int64)
    np.cumsum(random.integers(SHORTEST, LONGEST, count, endpoint=True), out=bounds[1:])
    return column_of(LETTERS[random.integers(0, len(LETTERS), bounds[-1], np.uint8)], bounds)


def resident_bytes() -> int:
    """Return the memory of this process."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def batches(count: int) -> Iterator[Names]:
    """Yield names by the million."""
    for seed in range(-(-count // AT_ONCE)):
        yield some_names(min(AT_ONCE, count - seed * AT_ONCE), seed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", type=int, default=10_000_000)
    count = parser.parse_args().names
    warm_up()
    before, adding, slowest = resident_bytes(), 0.0, 0.0
    table = NameTable()
    for names in batches(count):
        for begin in range(0, len(names), LOOKED_UP):
            began = time.perf_counter()
            table.number(names[begin : begin + LOOKED_UP])
            adding += (took := time.perf_counter() - began)
            slowest = max(slowest, took)
    del names
    held = resident_bytes() - before
    text = table.names.nbytes - 8 * (len(table) + 1)
    print(f"{len(table):,} names of {text / len(table):.1f} bytes: {held / len(table):.1f} bytes each in memory")
    print(f"added: {count / adding / 1e6:.2f} M names/s; slowest {LOOKED_UP:,}: {slowest * 1e3:.0f} ms")

    took = 0.0
    random = np.random.default_rng(1)
    for _ in range(100):
        known = table.names.take(random.integers(0, len(table), LOOKED_UP))
        began = time.perf_counter()
        table.number(known)
        took += time.perf_counter() - began
    print(f"looked up, {LOOKED_UP:,} at a time: {100 * LOOKED_UP / took / 1e6:.2f} M names/s")

    began = time.perf_counter()
    data = encode(table.names.stretch(0, len(table)), 0)
    print(f"written: {time.perf_counter() - began:.2f} s, {len(data) / len(table):.1f} bytes each")
    dictionary = Dictionary().append(Part(0, len(table), None), table.names.digest)
    del table
    began = time.perf_counter()
    load_table(dictionary, lambda _: data)
    print(f"restored: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
