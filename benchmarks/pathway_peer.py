"""Ranks a stream of edges in Pathway, file after file: the other side of `online_pathway`.

Runs in an environment of its own, because Pathway's requirements exclude ours; nothing but Pathway is needed. Each
file is moved into the watched folder as soon as the one before it has been answered. Prints JSON: a line with
Pathway's version, and one for every answered file.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
import traceback
from fractions import Fraction
from pathlib import Path
from typing import Any

SCALE = 1 << 30
"""Of TunkRank's fixed point: whole numbers, as in Pathway's own pagerank, whose sums do not hang on their order."""
STDLIB_SCALE = 1_000
"""What Pathway's own pagerank computes in: its jump is this, its damping 5/6, and it divides by whole numbers."""
STDLIB_DAMPING = 5 / 6
COMMIT_MILLISECONDS = 10
"""How often the connector hands over what it has read; a whole file stays together."""
GREATEST_NUMERATOR = 10_000
"""Of the retweet probability: with it, influence times numerator fits 63 bits."""


def due(influence: Any, probability: Fraction, grid: int) -> Any:
    """Return ``1 + p * influence`` in fixed point, rounded to a multiple of the grid.

    Takes Pathway's columns and numpy's arrays. A grid lets a change that is too small to matter end where it is, as
    the tolerance does in the online tier.
    """
    exact = SCALE + influence * probability.numerator // probability.denominator
    return (exact + grid // 2) // grid * grid


def main() -> None:
    """Rank the files; ends the process."""
    options = _options()
    import pathway as pw

    class Follow(pw.Schema):
        src: int
        dst: int

    follows = pw.io.csv.read(
        options.watched, schema=Follow, mode="streaming", autocommit_duration_ms=COMMIT_MILLISECONDS
    )
    edges = follows.select(u=follows.pointer_from(follows.src), v=follows.pointer_from(follows.dst))
    if options.algorithm == "pagerank":
        values = _stdlib_pagerank(edges, options.steps)
    else:
        values = _tunkrank(edges, options.steps, options.probability, options.grid)
    # One output says what the values are and after how many records: with the end of its time both are complete.
    count = edges.reduce(value=pw.reducers.count()).select(value=pw.this.value, counts=True)
    values = values.select(value=pw.this.value, counts=False).update_id_type(pw.Pointer)
    pw.universes.promise_are_pairwise_disjoint(values, count)
    answers = _Answers()
    pw.io.subscribe(pw.Table.concat(values, count), on_change=answers.changed, on_time_end=answers.complete)
    _say(version=pw.__version__)
    threading.Thread(target=_feed, args=(options, answers), daemon=True).start()
    pw.run(monitoring_level=pw.MonitoringLevel.NONE)


def _tunkrank(edges: Any, steps: int, probability: Fraction, grid: int) -> Any:
    import pathway as pw

    followed = edges.groupby(id=edges.v).reduce(degree=0)
    following = edges.groupby(id=edges.u).reduce(degree=pw.reducers.count())
    degrees = pw.Table.update_rows(followed, following)
    unfollowed = following.difference(followed).select(value=0)
    values = degrees.select(value=0)
    for _ in range(steps):
        shares = degrees.select(
            share=pw.if_else(degrees.degree == 0, 0, due(values.value, probability, grid) // degrees.degree)
        )
        given = edges.groupby(id=edges.v).reduce(value=pw.reducers.sum(shares.ix(edges.u).share))
        values = pw.Table.concat(unfollowed, given).with_universe_of(degrees)
    return values


def _stdlib_pagerank(edges: Any, steps: int) -> Any:
    from pathway.stdlib.graphs.pagerank import pagerank

    ranks = pagerank(edges, steps)
    return ranks.select(value=ranks.rank)


class _Answers:
    """What Pathway says in its own thread: the values, and when how many records were answered."""

    def __init__(self) -> None:
        self.values: dict[Any, int] = {}
        self.complete_times: queue.SimpleQueue[tuple[float, float, int]] = queue.SimpleQueue()
        self._records = 0

    def changed(self, key: Any, row: dict[str, Any], time: int, is_addition: bool) -> None:
        """Take one row of a change; a changed row comes as one removed and one added, in either order."""
        if is_addition and row["counts"]:
            self._records = row["value"]
        elif is_addition:
            self.values[key] = row["value"]

    def complete(self, logical_time: int) -> None:
        """Note that all up to a time, milliseconds since 1970, has been told."""
        self.complete_times.put((time.time(), logical_time / 1_000, self._records))

    def wait_for(self, records: int) -> tuple[float, float]:
        """Wait until so many records are answered; return when they were, and when their batch was opened."""
        while True:
            answered, opened, found = self.complete_times.get()
            if found == records:
                return answered, opened

    def by_vertex(self, vertices: int) -> list[int | None]:
        """Return the values of vertices 0 .. vertices-1, None for those that have none."""
        from pathway.internals.api import ref_scalar

        found = [self.values.get(ref_scalar(vertex)) for vertex in range(vertices)]
        known = sum(value is not None for value in found)
        if known != len(self.values):
            message = f"{len(self.values)} vertices have a value, {known} of them are among 0 .. {vertices - 1}"
            raise ValueError(message)
        return found


def _feed(options: argparse.Namespace, answers: _Answers) -> None:
    try:
        records = 0
        for number, path in enumerate(options.files):
            with path.open(encoding="ascii") as lines:
                edges = sum(1 for _ in lines) - 1
            records += edges
            moved, used = time.time(), time.process_time()
            path.rename(options.watched / f"{number:06}.csv")
            answered, opened = answers.wait_for(records)
            _say(
                edges=edges,
                seconds=answered - moved,
                # The batch cannot be opened before its file is there, but clocks of milliseconds may say so.
                computing_seconds=answered - max(opened, moved),
                processor_seconds=time.process_time() - used,
                values=answers.by_vertex(options.vertices),
            )
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    # A watched folder has no end, and the engine no way to be told so from outside.
    os._exit(0)


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("watched", type=Path, help="folder to watch, on the same file system as the files")
    parser.add_argument("files", type=Path, nargs="+", help="CSV with a header src,dst; edges that never repeat")
    parser.add_argument("--algorithm", choices=["tunkrank", "pagerank"], required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--vertices", type=int, required=True, help="ids are 0 .. VERTICES - 1")
    parser.add_argument("--probability", type=Fraction, default=Fraction(1, 2), help="tunkrank: retweet probability")
    parser.add_argument("--grid", type=int, default=1, help=f"tunkrank: what is due is rounded to GRID / {SCALE}")
    options = parser.parse_args()
    if options.probability.numerator > GREATEST_NUMERATOR:
        parser.error(
            f"--probability: {options.probability} has a numerator beyond {GREATEST_NUMERATOR:,}; use fewer digits"
        )
    return options


if __name__ == "__main__":
    main()
