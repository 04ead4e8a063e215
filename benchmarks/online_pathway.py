"""The online tier beside Pathway, a dataflow that keeps rankings up to date too, at the errors measured of both.

Both take the same edges in the same order out of text files and answer after every epoch. The stream has no self-loops
and no repetitions, which Pathway would have to sort out, and no deletes. Ours is a whole run from one file to committed
epochs; its rate is that of its newest epochs, which it reads while it computes. Pathway has persistence off and watches
a folder, into which every epoch is moved when the one before has been answered; its rate is one over the time from when
it opens the batch, and so without the wait until it looks at the folder. On a machine with other work its rate is at
most what its processor time allows on as many idle cores as it has threads, which the table says too.

Two rankings: TunkRank, written in Pathway with a fixed number of steps, the fewest that reach the error of our run; and
the pagerank of Pathway's library, which has damping 5/6 and computes in whole thousandths, beside our PageRank at 5/6.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pathway_peer
from measure import environment, write
from online_peers import EXACT_ERROR, MEASURED, largest_error, sweep
from online_runs import whole_run

from graph_stream.graph import warm_up
from graph_stream.runs import open_run, scores
from ingest.synthetic import Rmat

Longs = npt.NDArray[np.int64]
Ranks = npt.NDArray[np.float64]

EPOCHS = (100, 1_000, 10_000, 100_000)
STDLIB_STEPS = 5
"""What Pathway's library does unasked."""
MOST_STDLIB_STEPS = 60
LEAST_ERROR = 1e-6
"""Pathway's fixed point is not asked for less."""


@dataclasses.dataclass(frozen=True, eq=False)
class Edges:
    """A stream of edges that never repeat; vertices are 0 .. size-1."""

    follower: Longs
    followed: Longs
    size: int

    def head(self, count: int) -> Edges:
        """Return the first so many."""
        return Edges(self.follower[:count], self.followed[:count], self.size)

    def save(self, path: Path, start: int = 0, delimiter: str = " ", header: str = "") -> None:
        """Write those from ``start`` on as text."""
        table = np.stack([self.follower[start:], self.followed[start:]], axis=1)
        np.savetxt(path, table, fmt="%d", delimiter=delimiter, header=header, comments="")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What both sides compute, and how Pathway is told to."""

    name: str
    factor: float
    steps: int
    arguments: tuple[str, ...]
    scale: int
    """What Pathway's whole numbers are multiples of one over."""


def pathway(folder: Path, options: argparse.Namespace) -> None:
    """Measure both sides at each epoch size on one growing graph."""
    python = options.pathway_python
    if not python.exists():
        print(f"\n## Pathway: left out, {python} is missing (make bench-online installs it)", flush=True)
        return
    parts = plan(options.pathway_bulk, EPOCHS)
    edges = distinct_stream(options.pathway_scale, sum(count for count, _ in parts))
    warm_up()
    p = options.peer_probability
    ours = _ours_at_all(folder, edges, parts, "tunkrank", p, options)
    steps, grid = fewest_steps(edges, p, max(LEAST_ERROR, ours[EPOCHS[-1]][1]))
    arguments = (f"--probability={Fraction(str(p))}", f"--grid={grid}")
    tunkrank = Ranking("tunkrank", p, steps, arguments, pathway_peer.SCALE)
    theirs = _theirs(folder, edges, parts, tunkrank, options)
    rows = rows_of(tunkrank, parts, ours, theirs, edges)
    pagerank = Ranking("pagerank", pathway_peer.STDLIB_DAMPING, STDLIB_STEPS, (), pathway_peer.STDLIB_SCALE)
    ours = _ours_at_all(folder, edges, parts, "pagerank", pagerank.factor, options)
    rows += rows_of(pagerank, parts, ours, _theirs(folder, edges, parts, pagerank, options), edges)

    print(f"\n## Pathway: R-MAT scale {options.pathway_scale}, p = {p}, damping 5/6, {options.threads} threads\n")
    print(f"{environment()}, Pathway {theirs.version}\n")
    _show(rows, options.pathway_seconds, options.threads)
    exact = exact_ranks(edges, "pagerank", pagerank.factor)
    errors = [
        largest_error(ranks / pagerank.scale, exact)
        for ranks in itertools.islice(stdlib_ranks(edges), MOST_STDLIB_STEPS)
    ]
    print(
        f"\nPathway's pagerank rounds down to thousandths: with 1 to {MOST_STDLIB_STEPS} steps its least error is "
        f"{min(errors):.1e}, with {np.argmin(errors) + 1}."
    )
    lost = [f"{row['ranking']} at {row['epoch_edges']:,}" for row in rows if (_ratio(row) or 1) < 1]
    print(f"\nPathway is ahead of us: {', '.join(lost) or 'nowhere'}", flush=True)
    write(options.out / "pathway.parquet", rows)


# --- the stream and its exact answers ---------------------------------------------------------------------


def plan(bulk: int, sizes: Sequence[int], measured: int = MEASURED) -> list[tuple[int, int]]:
    """Return for each of Pathway's files its edges, and the size of epoch it is measured for, 0 for none.

    Between sizes come edges that are not measured, so that every measured epoch begins at a multiple of its size: our
    run, which has one size from the start, begins one there too.
    """
    parts, at = [(bulk, 0)], bulk
    for size in sizes:
        if at % size:
            parts.append((size - at % size, 0))
            at += parts[-1][0]
        parts += [(size, size)] * measured
        at += size * measured
    return parts


def distinct_stream(scale: int, count: int) -> Edges:
    """Return so many R-MAT edges in the order in which they first occur, without self-loops.

    Raises
    ------
    ValueError
        If a stream of twice that length has too few.
    """
    records = Rmat(scale, 2 * count, 1).records(0, 2 * count)
    keys = ((records.src << scale) | records.dst)[records.src != records.dst]
    keys = keys[np.sort(np.unique(keys, return_index=True)[1])[:count]]
    if len(keys) < count:
        message = f"R-MAT of scale {scale} has {len(keys):,} edges in {2 * count:,} records, {count:,} are wanted"
        raise ValueError(message)
    return Edges(keys >> scale, keys & ((1 << scale) - 1), 1 << scale)


def exact_ranks(edges: Edges, ranking: str, factor: float) -> Ranks:
    """Return the exact TunkRank, or ``y = 1 + factor * X`` for PageRank, not normalised; 0 where there is no edge."""
    influence = sweep(edges.follower, edges.followed, np.zeros(edges.size), factor, EXACT_ERROR)
    if ranking == "tunkrank":
        return influence
    return np.where(_present(edges), 1 + factor * influence, 0.0)


def _present(edges: Edges) -> npt.NDArray[np.bool_]:
    present = np.zeros(edges.size, bool)
    present[edges.follower] = present[edges.followed] = True
    return present


# --- what Pathway computes, here --------------------------------------------------------------------------


def fewest_steps(edges: Edges, p: float, error: float) -> tuple[int, int]:
    """Return with how many steps on which grid Pathway's TunkRank has at most this error.

    The grid alone can make an error of half of what is allowed: what is due is at least 1 and off by half the grid
    at most, and each error is handed on with p.
    """
    grid = max(1, int((1 - p) * error * pathway_peer.SCALE))
    exact = exact_ranks(edges, "tunkrank", p)
    for steps, influence in enumerate(tunkrank_steps(edges, Fraction(str(p)), grid), 1):
        if largest_error(influence / pathway_peer.SCALE, exact) <= error:
            return steps, grid
    raise AssertionError


def tunkrank_steps(edges: Edges, p: Fraction, grid: int) -> Iterator[Longs]:
    """Yield what Pathway's TunkRank comes to after one step, two steps and so on."""
    degree = np.maximum(np.bincount(edges.follower, minlength=edges.size), 1)
    influence = np.zeros(edges.size, np.int64)
    while True:
        influence = _given(edges, pathway_peer.due(influence, p, grid) // degree)
        yield influence


def stdlib_ranks(edges: Edges) -> Iterator[Longs]:
    """Yield what the pagerank of Pathway's library comes to after one step, two steps and so on."""
    degree = np.maximum(np.bincount(edges.follower, minlength=edges.size), 1)
    present = _present(edges)
    ranks = np.where(present, 6_000, 0)
    while True:
        ranks = np.where(present, 1_000 + _given(edges, ranks * 5 // (degree * 6)), 0)
        yield ranks


def _given(edges: Edges, share: Longs) -> Longs:
    given = np.zeros(edges.size, np.int64)
    np.add.at(given, edges.followed, share[edges.follower])
    return given


# --- our side ---------------------------------------------------------------------------------------------


def _ours_at_all(
    folder: Path, edges: Edges, parts: list[tuple[int, int]], ranking: str, factor: float, options: argparse.Namespace
) -> dict[int, tuple[float, float]]:
    """Return for each size of an epoch edges per second and the error of the last answer."""
    return {size: _ours(folder, edges.head(end), size, ranking, factor, options) for size, end in _ends(parts).items()}


def _ends(parts: list[tuple[int, int]]) -> dict[int, int]:
    """Return for each size how many edges there are after its last epoch."""
    totals = itertools.accumulate(count for count, _ in parts)
    return {size: total for (_, size), total in zip(parts, totals, strict=True) if size}


def _ours(
    folder: Path, edges: Edges, epoch_edges: int, ranking: str, factor: float, options: argparse.Namespace
) -> tuple[float, float]:
    source = folder / f"edges-{len(edges.follower)}.txt"
    if not source.exists():
        edges.save(source)
    with tempfile.TemporaryDirectory(dir=folder, prefix="store-") as store:
        done = whole_run(
            folder,
            str(source),
            store=store,
            algorithm=ranking,
            retweet_probability=factor,
            damping=factor,
            epoch_edges=epoch_edges,
            threads=options.threads,
            tolerance=options.peer_tolerance,
            keep_epochs=len(edges.follower) // epoch_edges,
        )
        table = scores(open_run("bench", store), len(done.rows))
    found = np.zeros(edges.size)
    found[table["vertex"].to_numpy()] = table["influence"].to_numpy()
    exact = exact_ranks(edges, ranking, factor)
    if ranking == "pagerank":
        exact /= exact.sum()
    # Three small epochs take less time than the machine may give to another process.
    newest = done.rows[-max(MEASURED, len(done.rows) // 10) - 1 :]
    seconds = newest[-1]["published_at"] - newest[0]["published_at"]
    return (newest[-1]["total_records"] - newest[0]["total_records"]) / seconds, largest_error(found, exact)


# --- Pathway ----------------------------------------------------------------------------------------------


class Answers:
    """What Pathway printed, in a time limit or to its end.

    Attributes
    ----------
    version : str
        Pathway's.
    epochs : list of dict
        Of each file that was answered: ``edges``, ``seconds`` since it was there, ``computing_seconds`` since its
        batch was opened, ``processor_seconds`` of all threads, and ``values`` by vertex, None for those without one.
    """

    def __init__(self, output: str) -> None:
        said = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]
        self.version: str = said[0]["version"] if said else "of unknown version"
        self.epochs: list[dict[str, Any]] = said[1:]


def answers_of(command: Sequence[str], threads: int, limit_seconds: float) -> Answers:
    """Run Pathway's side; at the time limit it is killed and what it has answered counts.

    Raises
    ------
    RuntimeError
        If it fails; the text is what it said.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            env={**os.environ, "PATHWAY_THREADS": str(threads)},
            timeout=limit_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return Answers((late.stdout or b"").decode())
    if done.returncode:
        message = f"Pathway's side ended with {done.returncode}:\n{done.stderr.decode()}"
        raise RuntimeError(message)
    return Answers(done.stdout.decode())


def _theirs(
    folder: Path, edges: Edges, parts: list[tuple[int, int]], ranking: Ranking, options: argparse.Namespace
) -> Answers:
    with tempfile.TemporaryDirectory(dir=folder, prefix="pathway-") as scratch:
        watched = Path(scratch) / "watched"
        watched.mkdir()
        files, end = [], 0
        for count, _ in parts:
            start, end = end, end + count
            files.append(Path(scratch) / f"{end}.csv")
            edges.head(end).save(files[-1], start, ",", "src,dst")
        command = [options.pathway_python, pathway_peer.__file__, watched, *files, f"--algorithm={ranking.name}"]
        command += [f"--steps={ranking.steps}", f"--vertices={edges.size}", *ranking.arguments]
        return answers_of([str(part) for part in command], options.threads, options.pathway_seconds)


# --- the table --------------------------------------------------------------------------------------------

Row = dict[str, str | int | float | None]


def rows_of(
    ranking: Ranking, parts: list[tuple[int, int]], ours: dict[int, tuple[float, float]], theirs: Answers, edges: Edges
) -> list[Row]:
    """Return a row for each size of an epoch; None for what Pathway did not come to."""
    rows: list[Row] = []
    # Where the time ran out the last parts have no answer.
    totals = itertools.accumulate(count for count, _ in parts)
    answered = list(zip(theirs.epochs, parts, totals, strict=False))
    for size, end in _ends(parts).items():
        epochs = [epoch for epoch, (_, measured_as), _ in answered if measured_as == size]
        error = None
        if epochs:
            answered_edges = max(total for _, (_, measured_as), total in answered if measured_as == size)
            values = np.array([value or 0 for value in epochs[-1]["values"]]) / ranking.scale
            error = largest_error(values, exact_ranks(edges.head(answered_edges), ranking.name, ranking.factor))
        rows.append(
            {
                "ranking": ranking.name,
                "epoch_edges": size,
                "edges": end,
                "ours_per_second": ours[size][0],
                "ours_error": ours[size][1],
                "pathway_steps": ranking.steps,
                "pathway_per_second": _rate(size, epochs, "computing_seconds"),
                "pathway_per_second_with_wait": _rate(size, epochs, "seconds"),
                "pathway_per_processor_second": _rate(size, epochs, "processor_seconds"),
                "pathway_error": error,
            }
        )
    return rows


def _rate(size: int, epochs: list[dict[str, Any]], what: str) -> float | None:
    return size / float(np.median([epoch[what] for epoch in epochs])) if epochs else None


def _ratio(row: Row) -> float | None:
    theirs = row["pathway_per_second"]
    return float(row["ours_per_second"]) / theirs if theirs else None


def _show(rows: list[Row], limit_seconds: float, threads: int) -> None:
    def number(value: float | None, form: str, otherwise: str = "") -> str:
        return otherwise if value is None else f"{value:{form}}"

    print("| ranking | epoch | edges | ours, edges/s | error | Pathway, edges/s | with wait | ", end="")
    print(f"at most on {threads} idle cores | steps | error | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        cells = [row["ranking"], f"{row['epoch_edges']:,}", f"{row['edges']:,}"]
        cells += [f"{row['ours_per_second']:,.0f}", f"{row['ours_error']:.1e}"]
        cells += [number(row["pathway_per_second"], ",.0f", f"none: > {limit_seconds:g} s")]
        cells += [number(row["pathway_per_second_with_wait"], ",.0f")]
        per_processor = row["pathway_per_processor_second"]
        cells += [number(per_processor and per_processor * threads, ",.0f")]
        cells += [
            row["pathway_steps"],
            number(row["pathway_error"], ".1e"),
            number(_ratio(row), ".2f"),
        ]
        print(f"| {' | '.join(map(str, cells))} |")
