"""The online tier beside systems that answer the same question, at the error each was measured to have.

Our side is a whole run from text file to committed epochs. The peers get the edges in memory: igraph and NetworKit
are given the set of edges, and build their graph and rank it for every epoch; the warm sweep keeps the set in a
sorted array and goes over it from the last answer until no vertex owes more than the tolerance; Spark runs the
audit's job. None of them deletes or makes anything durable.

Where epochs are so small that a run would take hours to get to the whole graph, ours is measured on the first
part of the stream: on a smaller graph than the peers, which flatters ours. The table says how large.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
from measure import environment, write
from online_runs import batches_of, rmat_file, whole_run

from graph_stream import snapshot
from graph_stream.algorithms import Parameters
from graph_stream.graph import PartitionState, warm_up
from graph_stream.rounds import alone

Longs = npt.NDArray[np.int64]
Ranks = npt.NDArray[np.float64]
Rank = Callable[[Longs, Longs], Ranks]
"""From followers and followed of all edges, without repetitions, to the influence of vertices 0 .. n-1."""

EPOCHS = (100, 1_000, 10_000, 100_000)
MEASURED = 3
EXACT_ERROR = 1e-12


def peers(folder: Path, options: argparse.Namespace) -> None:
    """Measure all sides at each epoch size on one graph."""
    p = options.peer_probability
    size = 1 << options.peer_scale
    path = rmat_file(folder, options.peer_scale, options.peer_edges)
    batch = batches_of(str(path), options.peer_edges)[0]
    follower, followed = _distinct(batch.src, batch.dst, size)
    exact = sweep(follower, followed, np.zeros(size), p, EXACT_ERROR)
    warm_up()
    rows: list[dict[str, object]] = []
    sides: dict[str, Rank] = {}
    if importlib.util.find_spec("igraph"):
        sides["igraph"] = lambda src, dst: igraph_rank(src, dst, size, p)
    if importlib.util.find_spec("networkit"):
        sides["NetworKit"] = lambda src, dst: networkit_rank(src, dst, size, p, options.peer_tolerance)
    for name in {"igraph", "NetworKit"} - sides.keys():
        print(f"{name} is not installed: pip install --group bench", file=sys.stderr)
    print(f"\n## Peers: R-MAT scale {options.peer_scale}, {options.peer_edges:,} records, p = {p}\n\n{environment()}\n")
    print("| epoch | side | records in the graph | edges/s | ours / theirs | largest relative error |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    once = {name: _timed_rank(rank, follower, followed, exact) for name, rank in sides.items()}
    once["Spark"] = _spark(folder, follower, followed, exact, p, options.threads)
    for epoch_edges in EPOCHS:
        ours, e = _ours(folder, path, epoch_edges, p, options)
        measured = {"run async": (ours, e)}
        measured["warm sweep"] = _warm_sweep(batch.src, batch.dst, size, epoch_edges, p, options.peer_tolerance, exact)
        # What is recomputed costs the same whatever the size of the epoch.
        measured |= {name: (epoch_edges / seconds, error) for name, (seconds, error) in once.items() if seconds}
        for name, (rate, error) in measured.items():
            most = epoch_edges * options.peer_max_epochs if name == "run async" else options.peer_edges
            size_of = min(most, options.peer_edges)
            cells = f"{epoch_edges:,} | {name} | {size_of:,} | {rate:,.0f} | {ours / rate:.2f} | {error:.1e}"
            print(f"| {cells} |", flush=True)
            rows.append(
                {"epoch_edges": epoch_edges, "side": name, "records": size_of, "per_second": rate, "error": error}
            )
    lost = [f"{row['side']} at {row['epoch_edges']:,}" for row in rows if _beats(row, rows)]
    print(f"\nAhead of us: {', '.join(lost) or 'nobody'}")
    write(options.out / "peers.parquet", rows)


def _beats(row: dict[str, object], rows: list[dict[str, object]]) -> bool:
    ours = next(each for each in rows if each["side"] == "run async" and each["epoch_edges"] == row["epoch_edges"])
    return float(str(row["per_second"])) > float(str(ours["per_second"]))


def _distinct(src: Longs, dst: Longs, size: int) -> tuple[Longs, Longs]:
    keys = np.unique(src[src != dst] * size + dst[src != dst])
    return keys // size, keys % size


def largest_error(found: Ranks, exact: Ranks) -> float:
    followed = exact > 0
    return float(np.max(np.abs(found[followed] - exact[followed]) / exact[followed], initial=0.0))


def _timed_rank(rank: Rank, follower: Longs, followed: Longs, exact: Ranks) -> tuple[float, float]:
    """Return the median of seconds, and the error."""
    times = []
    for _ in range(MEASURED):
        began = time.perf_counter()
        found = rank(follower, followed)
        times.append(time.perf_counter() - began)
    return float(np.median(times)), largest_error(found, exact)


# --- our side ---------------------------------------------------------------------------------------------


def _ours(folder: Path, path: Path, epoch_edges: int, p: float, options: argparse.Namespace) -> tuple[float, float]:
    """Return records per second over the newest epochs of a whole run, and its certificate."""
    source = path
    if epoch_edges < options.peer_edges // options.peer_max_epochs:
        source = folder / f"head-{epoch_edges}.txt"
        with open(path, encoding="ascii") as lines, open(source, "w", encoding="ascii") as head:
            for _, line in zip(range(epoch_edges * options.peer_max_epochs), lines, strict=False):
                head.write(line)
    done = whole_run(
        folder,
        str(source),
        epoch_edges=epoch_edges,
        threads=options.threads,
        retweet_probability=p,
        tolerance=options.peer_tolerance,
        keep_epochs=options.peer_max_epochs,
    )
    rows = done.rows[len(done.rows) // 2 :]
    seconds = rows[-1]["published_at"] - rows[0]["published_at"]
    return (rows[-1]["total_records"] - rows[0]["total_records"]) / seconds, done.error_bound


# --- peers ------------------------------------------------------------------------------------------------


def igraph_rank(follower: Longs, followed: Longs, size: int, p: float) -> Ranks:
    """Build the graph in igraph and rank it; exact."""
    import igraph

    graph = igraph.Graph(n=size, edges=np.stack([follower, followed], axis=1), directed=True)
    ranks = np.array(graph.pagerank(damping=p, implementation="prpack"))
    return _influence(ranks, follower, size, p)


def networkit_rank(follower: Longs, followed: Longs, size: int, p: float, tolerance: float) -> Ranks:
    """Build the graph in NetworKit and rank it."""
    import networkit

    graph = networkit.GraphFromCoo((follower.astype(np.uint64), followed.astype(np.uint64)), n=size, directed=True)
    ranking = networkit.centrality.PageRank(
        graph, p, tolerance / size, distributeSinks=networkit.centrality.SinkHandling.DistributeSinks
    )
    ranking.run()
    ranks = np.array(ranking.scores())
    return _influence(ranks / ranks.sum(), follower, size, p)


def _influence(ranks: Ranks, follower: Longs, size: int, p: float) -> Ranks:
    """Turn PageRank with damping p and redistributed sinks into TunkRank: it is the same up to an affine map."""
    sinks = np.bincount(follower, minlength=size) == 0
    base = ((1 - p) + p * ranks[sinks].sum()) / size
    return (ranks / base - 1) / p


def sweep(follower: Longs, followed: Longs, influence: Ranks, p: float, tolerance: float) -> Ranks:
    """Sweep over all edges until no vertex owes more than the tolerance; also the exact answer."""
    degree = np.bincount(follower, minlength=len(influence))
    share = np.zeros(len(influence))
    while True:
        due = 1 + p * influence
        np.divide(due, degree, out=share, where=degree > 0)
        influence = _spread(follower, followed, share)
        # What the answer lacks of being what its own shares would give.
        if np.max(np.abs(1 + p * influence - due)[degree > 0], initial=0.0) <= tolerance:
            return influence


@numba.njit
def _spread(follower: Longs, followed: Longs, share: Ranks) -> Ranks:
    influence = np.zeros(len(share))
    for i in range(len(follower)):
        influence[followed[i]] += share[follower[i]]
    return influence


def _warm_sweep(
    src: Longs, dst: Longs, size: int, epoch_edges: int, p: float, tolerance: float, exact: Ranks
) -> tuple[float, float]:
    """Return records per second of sweeps from the last answer, over the last epochs, and the error."""
    begin = len(src) - MEASURED * epoch_edges
    edges = _distinct(src[:begin], dst[:begin], size)
    influence = sweep(*edges, np.zeros(size), p, tolerance)
    keys = edges[0] * size + edges[1]
    seconds = []
    for start in range(begin, len(src), epoch_edges):
        epoch = slice(start, start + epoch_edges)
        began = time.perf_counter()
        follower, followed = _distinct(src[epoch], dst[epoch], size)
        keys = _with(keys, follower * size + followed)
        influence = sweep(keys // size, keys % size, influence, p, tolerance)
        seconds.append(time.perf_counter() - began)
    return epoch_edges / float(np.median(seconds)), largest_error(influence, exact)


def _with(keys: Longs, more: Longs) -> Longs:
    """Return a sorted set with some more keys, which are sorted and distinct."""
    place = np.searchsorted(keys, more)
    known = keys[np.minimum(place, len(keys) - 1)] == more
    return np.insert(keys, place[~known], more[~known])


def _spark(
    folder: Path, follower: Longs, followed: Longs, exact: Ranks, p: float, threads: int
) -> tuple[float | None, float]:
    """Return the seconds of the audit's job on a warm session, and its error; None without Java."""
    import pyarrow.parquet as pq

    from spark.jobs.ranking import main
    from spark.session import JavaMissing, require_java
    from spark.step import SparkSteps

    try:
        require_java()
    except JavaMissing as missing:
        print(f"without Spark: {missing}", file=sys.stderr)
        return None, 0.0
    state = PartitionState(Parameters(retweet_probability=p))
    state.apply(1, follower, followed, np.ones(len(follower), np.int8), alone)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch) / "snapshot.parquet"
        source.write_bytes(snapshot.encode(state.capture_all(), 1, 1))
        steps = SparkSteps(Path(scratch), f"local[{threads}]")
        try:
            for number in range(2):
                done = steps.run(main, [(str(source), 1)], Path(scratch) / f"out-{number}", f"{number}", factor=p)
        finally:
            steps.close()
        table = pq.read_table(done["path"], columns=["vertex", "influence"])
    found = np.zeros(len(exact))
    found[table["vertex"].to_numpy()] = table["influence"].to_numpy()
    return float(done["seconds"]), largest_error(found, exact)
