"""Exact rankings of a snapshot, as a DataFrame job: TunkRank and PageRank.

Both are read out of one vector, the influence ``I = W^T (b + p*I)`` with ``W[f, x] = 1 / |following(f)|`` for
a follower f of x. TunkRank is ``I`` itself, with ``b = 1`` and p the retweet probability.
PageRank is ``y / sum(y)`` with ``y = b + p*I``, p the damping and ``b`` the weight of each vertex, 1 where none
is given: jumps go to vertices in proportion to it, also from those that follow no one. The job solves for
``I`` by Jacobi iteration from ``I_0 = 0``, kept in the form of its increments::

    delta_{k+1} = W^T lag_k,    I_{k+1} = I_k + delta_{k+1},    lag_{k+1} = p * delta_{k+1},    lag_0 = b.

**What it promises.** Every score is within ``tolerance`` (default 1e-10) of the exact one, relative to the
exact one, and a vertex without followers has an influence of exactly 0. The bound reached is proven and
published as ``relative_error``:

1. *Truncation.* ``lag_k`` is what the vertices still have to emit: ``I - I_k = (Id - p*W^T)^-1 W^T lag_k``.
   The operator is non-negative and maps ``b`` to ``I``; hence ``0 <= I - I_k <= max(lag_k / b) * I`` for
   every vertex (the online tier's certificate). Increments are used because they make ``lag_k`` a sum
   of non-negative numbers: taken as a difference of two large influences it would be lost to cancellation.
2. *Rounding.* No operation subtracts, so relative errors only add up. Per iteration a value meets at most 5
   roundings of relative size ``u = 2^-53`` (``p*delta``, ``lag/following``, two where a sum becomes a
   float64, one where it joins the influence), after k iterations at most ``5*k*u``; counting 6 covers the
   second-order terms.
3. *Sums.* Contributions are added as integers: rounded up to a multiple of ``2^-2w`` and cut in two words of
   w bits behind the point, w small enough that no sum overflows. Integer sums are exact in any order: the
   error does not grow with the number of followers, and the result has the same bits for every partitioning.
   Rounding up moves a contribution of a vertex following d others by at most ``2^-2w``, as if its lag
   were ``d * 2^-2w`` larger; over k iterations that raises no influence by more than ``k * d_max *
   2^-2w / b_min`` of itself.
4. *Quotient.* ``y`` and its sum are low by the share of ``I`` at most, r, so their quotient is off by at most
   ``r / (1 - r)``; the sum is taken in decimals, and a few roundings of u come on top.

So ``r = max(lag_k / b) + k * (6*u + d_max * 2^-2w / b_min)``; the job stops when what it publishes is at most
``tolerance``.

The file needs PySpark only and runs alone:
``spark-submit spark/jobs/ranking.py --algorithm NAME --factor P --output DIR --inputs FILE...``
"""

import argparse
import csv
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

Inputs = Iterable[tuple[str | os.PathLike[str], int]]

MANIFEST_NAME = "_manifest.json"
MANIFEST_FORMAT = 1

CHANGE_SCHEMA = "kind TINYINT, key BIGINT, value BIGINT"
ROWS_PER_PARTITION = 2**19
MAX_STEPS_PER_CHECKPOINT = 8
UNIT_ROUNDOFF = 2.0**-53
ROUNDINGS_PER_STEP = 6
ROUNDINGS_OF_QUOTIENT = 8
SHARE_FOR_SOLUTION = 0.9
"""Of the tolerance, where a quotient is taken of the solution."""

ALGORITHMS = ("tunkrank", "pagerank")

SQL_SETTINGS = {
    # Shuffling once per iteration needs the state to stay in the partitions of the graph: nothing may merge
    # partitions at run time, and a broadcast would be a job of its own in every iteration.
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.autoBroadcastJoinThreshold": "-1",
    # All iterations run the same code; numbered classes would have Spark compile it for each of them.
    "spark.sql.codegen.useIdInClassName": "false",
}


class NotConverged(RuntimeError):
    """The bound was not reached within the allowed iterations, or float64 cannot reach it at all."""


class Graph(NamedTuple):
    """A snapshot's graph, laid out for the iteration.

    Attributes
    ----------
    rows
        One row per vertex: ``vertex`` int64, ``following`` int32 (how many it follows), ``receivers`` array
        of int64 (those it follows, and itself), ``base`` float64. Partitioned and sorted by ``vertex``.
    vertices, edges, max_following, sum_of_bases, least_base
        Totals over the rows.
    """

    rows: DataFrame
    vertices: int
    edges: int
    max_following: int
    sum_of_bases: float
    least_base: float


class Solution(NamedTuple):
    """Influences with their proven bound.

    Attributes
    ----------
    rows
        ``vertex`` int64, ``influence`` float64; one row per vertex.
    iterations
        Jacobi iterations made.
    relative_error
        Proven bound on ``|influence - exact| / exact`` over all vertices.
    """

    rows: DataFrame
    iterations: int
    relative_error: float


class Checkpoints:
    """The local checkpoints of one run, all freed when it ends.

    A local checkpoint cuts the lineage and, unlike a file, keeps the partitioning and order of its rows, so
    the next iteration shuffles only contributions. It does not survive the loss of an executor: the run fails
    then and has to be repeated, which for a job of minutes is cheaper than writing every iteration to a
    reliable store.
    """

    def __init__(self) -> None:
        self._frames: list[DataFrame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for frame in self._frames:
            _unpersist(frame)

    def cut(self, frame: DataFrame) -> DataFrame:
        """Compute `frame` now and return it without its history."""
        checkpointed = frame.localCheckpoint(eager=True)
        self._frames.append(checkpointed)
        return checkpointed

    def keep_only(self, *frames: DataFrame) -> None:
        """Free every checkpoint but those given."""
        kept = {id(frame) for frame in frames}
        for frame in self._frames:
            if id(frame) not in kept:
                _unpersist(frame)
        self._frames = [frame for frame in self._frames if id(frame) in kept]


def main(
    session: SparkSession,
    inputs: Inputs,
    output: str | os.PathLike[str],
    *,
    factor: float,
    algorithm: str = "tunkrank",
    weights: Mapping[int, float] | None = None,
    names: Sequence[str] = (),
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> dict[str, Any]:
    """Compute the exact ranking of the graph that `inputs` describe and write it to `output`.

    Parameters
    ----------
    session
        The Spark session; its own settings stay as they are.
    inputs
        Pairs of a Parquet file and its sequence number; a path without a scheme is a local one. Columns:
        ``kind`` int8 (+1 edge inserted, -1 edge deleted, others no edge: ignored), ``key`` int64 (the follower),
        ``value`` int64 (the followed). For each edge the row of the highest sequence counts (among equals an
        insertion); a vertex following itself is no edge.
    output
        A local folder, absent or empty. It gets Parquet files (``vertex`` int64, ``influence`` float64) and,
        as the last file, ``_manifest.json``.
    factor
        p, in [0, 1): the retweet probability, or the damping.
    algorithm
        One of `ALGORITHMS`.
    weights
        ``b`` of the vertices where it is not 1, above 0; for PageRank.
    names
        Parquet files that give vertices names: ``number`` int64, ``name`` string. The output then has three columns:
        ``vertex`` string, ``influence`` float64 and ``number`` int64.
    tolerance
        The largest relative error allowed for any vertex.
    max_iterations
        Cap on the Jacobi iterations.

    Returns
    -------
    dict
        The manifest: ``format, algorithm, factor, vertices, edges, iterations, relative_error`` and
        ``files``, a list of ``{name, bytes, sha256}``.

    Raises
    ------
    ValueError
        A parameter is out of range, an input is a folder, or `output` is not a local path.
    FileExistsError
        `output` already holds something.
    NotConverged
        `max_iterations` were not enough, or `tolerance` is finer than float64 allows.
    """
    weights = weights or {}
    _check_parameters(factor, algorithm, weights, tolerance, max_iterations)
    folder = _empty_folder(output)
    # A session of its own, because others who share the Spark context must not see its settings.
    own_session = session.newSession()
    for name, value in SQL_SETTINGS.items():
        own_session.conf.set(name, value)
    changes = read_changes(own_session, inputs)
    partitions = partition_count(changes.count())
    own_session.conf.set("spark.sql.shuffle.partitions", str(partitions))
    with Checkpoints() as checkpoints:
        graph = build_graph(changes, weights, partitions, checkpoints)
        share = 1.0 if algorithm == "tunkrank" else SHARE_FOR_SOLUTION
        solution = solve(graph, factor, checkpoints, tolerance=share * tolerance, max_iterations=max_iterations)
        if algorithm == "pagerank":
            solution = normalised(graph, factor, solution)
        rows = solution.rows.sortWithinPartitions("vertex")
        named = _named(rows, own_session, names) if names else rows
        named.write.mode("append").parquet(_uri(folder))
    summary = {
        "format": MANIFEST_FORMAT,
        "algorithm": algorithm,
        "factor": factor,
        "vertices": graph.vertices,
        "edges": graph.edges,
        "iterations": solution.iterations,
        "relative_error": solution.relative_error,
    }
    return write_manifest(folder, summary)


def _named(rows: DataFrame, session: SparkSession, files: Sequence[str]) -> DataFrame:
    """Put names in the place of their numbers, which become a column of their own."""
    paths = [_uri(path) for path in files]
    names = session.read.schema("number BIGINT, name STRING").option("__globPaths__", "false").parquet(*paths)
    numbered = rows.withColumnRenamed("vertex", "number")
    # A vertex without a name would be seen; an inner join would hide it.
    return numbered.join(names, "number", "left").select(F.col("name").alias("vertex"), "influence", "number")


def read_changes(session: SparkSession, inputs: Inputs) -> DataFrame:
    """Read edge changes, each with the sequence number of its file.

    Returns
    -------
    DataFrame
        ``sequence`` int64, ``kind`` int8, ``key`` int64, ``value`` int64.

    Raises
    ------
    ValueError
        An input is a folder.
    """
    sequences: dict[str, int] = {}
    for path, sequence in inputs:
        # A file may stand for several epochs that changed the same; of equal rows the latest counts.
        sequences[_uri(path)] = max(int(sequence), sequences.get(_uri(path), int(sequence)))
    if not sequences:
        return session.createDataFrame([], f"sequence BIGINT, {CHANGE_SCHEMA}")
    # Without the option Spark would take brackets and stars in a file's name for a pattern.
    files = session.read.schema(CHANGE_SCHEMA).option("__globPaths__", "false").parquet(*sequences)
    numbered = [(name, _sequence_of(name, sequences)) for name in files.inputFiles()]
    names = session.createDataFrame(numbered, "name STRING, sequence BIGINT")
    unknown = F.raise_error(F.concat(F.lit("Spark read a file it did not announce: "), "name"))
    return (
        files.where("abs(kind) = 1")
        .withColumn("name", F.input_file_name())
        .join(F.broadcast(names), "name", "left")
        .select(F.coalesce("sequence", unknown.cast("bigint")).alias("sequence"), "kind", "key", "value")
    )


def partition_count(rows: int) -> int:
    """Choose how many partitions hold `rows` edge changes.

    Never one: Spark treats a single partition as a layout of its own, and shuffles again to match it.
    """
    return max(2, math.ceil(rows / ROWS_PER_PARTITION))


def build_graph(changes: DataFrame, weights: Mapping[int, float], partitions: int, checkpoints: Checkpoints) -> Graph:
    """Reduce changes to the edges that exist, and lay them out by follower.

    Parameters
    ----------
    changes
        As from `read_changes`.
    weights
        ``b`` where it is not 1.
    partitions
        Number of partitions the vertices are hashed into.
    checkpoints
        Takes the layout, which every iteration reads.
    """
    edges = (
        changes.where("key <> value")
        .repartition(partitions, "key")
        .groupBy("key", "value")
        .agg(F.max(F.struct("sequence", "kind")).alias("last"))
        .where("last.kind = 1")
    )
    follows = F.struct(F.col("key").alias("vertex"), F.col("value").alias("followed"))
    is_followed = F.struct(F.col("value").alias("vertex"), F.lit(None).cast("bigint").alias("followed"))
    # collect_list skips nulls, so a vertex that follows nobody gets an empty list.
    layout = (
        edges.select(F.inline(F.array(follows, is_followed)))
        .repartition(partitions, "vertex")
        .groupBy("vertex")
        .agg(F.collect_list("followed").alias("followed"))
        .select(
            "vertex",
            F.size("followed").alias("following"),
            F.concat("followed", F.array("vertex")).alias("receivers"),
        )
    )
    rows = checkpoints.cut(_with_bases(layout, weights).sortWithinPartitions("vertex"))
    totals = rows.agg(F.count("*"), F.sum("following"), F.max("following"), F.sum("base"), F.min("base"))
    vertices, edge_count, max_following, sum_of_bases, least_base = totals.collect()[0]
    return Graph(rows, vertices, edge_count or 0, max_following or 0, sum_of_bases or 0.0, least_base or 1.0)


def _with_bases(layout: DataFrame, weights: Mapping[int, float]) -> DataFrame:
    if not weights:
        return layout.withColumn("base", F.lit(1.0))
    given = layout.sparkSession.createDataFrame(list(weights.items()), "vertex BIGINT, weight DOUBLE")
    weighted = layout.join(F.broadcast(given), "vertex", "left")
    return weighted.withColumn("base", F.coalesce("weight", F.lit(1.0))).drop("weight")


def solve(
    graph: Graph,
    factor: float,
    checkpoints: Checkpoints,
    *,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Iterate until the proven relative error is at most `tolerance` (see the module's text).

    Raises
    ------
    NotConverged
        `max_iterations` were not enough, or `tolerance` is finer than float64 allows.
    """
    # The lags of an iteration add up to at most the bases, low words to at most one per follower: a word this long
    # leaves room for any sum.
    word_bits = 62 - max(graph.vertices, math.ceil(graph.sum_of_bases)).bit_length()
    rounding_up = graph.max_following * 2.0 ** (-2 * word_bits) / graph.least_base
    error_per_step = ROUNDINGS_PER_STEP * UNIT_ROUNDOFF + rounding_up
    iterate = plan_iteration(graph, factor, word_bits)
    state = graph.rows.select("vertex", F.col("base").alias("lag"), F.lit(0.0).alias("influence"))
    largest_lag = 1.0 if graph.edges else 0.0
    iterations = 0
    while (relative_error := largest_lag + iterations * error_per_step) > tolerance:
        reached = (
            f"the ranking with p = {factor} is proven to a relative error of {relative_error:.3g} "
            f"after {iterations} iterations, not {tolerance:.3g}"
        )
        if iterations * error_per_step >= tolerance:
            message = f"{reached}: float64 does not reach this tolerance, ask for less"
            raise NotConverged(message)
        if iterations == max_iterations:
            message = f"{reached}: allow more iterations"
            raise NotConverged(message)
        steps = min(steps_to_go(largest_lag, factor, tolerance), max_iterations - iterations)
        for _ in range(steps):
            state = iterate(state)
        state = checkpoints.cut(state)
        checkpoints.keep_only(graph.rows, state)
        iterations += steps
        lags = state.join(graph.rows, "vertex").select(F.max(F.col("lag") / F.col("base")))
        largest_lag = lags.collect()[0][0]
    return Solution(state.select("vertex", "influence"), iterations, relative_error)


def normalised(graph: Graph, factor: float, solution: Solution) -> Solution:
    """Return PageRank, given the influence: shares that add up to 1, in the column ``influence``."""
    given = solution.rows.join(graph.rows, "vertex").select(
        "vertex", (F.col("base") + F.col("influence") * factor).alias("given")
    )
    # Decimals add up exactly, in any order.
    total = given.agg(F.sum(F.col("given").cast("decimal(38,18)"))).collect()[0][0]
    rows = given.select("vertex", (F.col("given") / float(total or 1)).alias("influence"))
    share = solution.relative_error
    relative_error = share / (1.0 - share) + ROUNDINGS_OF_QUOTIENT * UNIT_ROUNDOFF
    return Solution(rows, solution.iterations, relative_error)


def steps_to_go(largest_lag: float, factor: float, tolerance: float) -> int:
    """Guess the iterations still needed, at most a checkpoint's worth: the lag shrinks by about p in each."""
    if factor == 0:
        return 1
    needed = math.ceil(math.log(tolerance / largest_lag) / math.log(factor))
    return min(max(needed, 1), MAX_STEPS_PER_CHECKPOINT)


def plan_iteration(graph: Graph, factor: float, word_bits: int) -> Callable[[DataFrame], DataFrame]:
    """Make the function that plans one iteration.

    A vertex's influence so far travels to itself as one more row. Joining it to the new sums instead would read
    the state twice, and so compute the iterations planned since the last checkpoint again and again.

    Parameters
    ----------
    graph
        The graph.
    factor
        p.
    word_bits
        Length of each of the two words a contribution is cut in.

    Returns
    -------
    callable
        From a state to the next one: ``vertex`` int64, ``lag`` float64, ``influence`` float64, partitioned as
        `graph`.
    """
    unit = 2.0**word_bits
    scaled = F.col("lag") / F.greatest("following", F.lit(1)) * unit
    high = F.floor("scaled")
    low = F.ceil((F.col("scaled") - high) * unit)
    is_own = F.col("receiver") == F.col("vertex")
    delta = F.col("high") / unit + F.col("low") / unit**2
    emissions = ["vertex", "influence", scaled.alias("scaled"), F.explode("receivers").alias("receiver")]
    sums = [
        F.sum(F.when(is_own, 0).otherwise(high)).alias("high"),
        F.sum(F.when(is_own, 0).otherwise(low)).alias("low"),
        F.max(F.when(is_own, F.col("influence")).otherwise(0.0)).alias("influence"),
    ]
    next_state = [
        F.col("receiver").alias("vertex"),
        (delta * factor).alias("lag"),
        (F.col("influence") + delta).alias("influence"),
    ]

    def plan(state: DataFrame) -> DataFrame:
        emitted = state.join(graph.rows, "vertex").select(*emissions)
        return emitted.groupBy("receiver").agg(*sums).select(*next_state)

    return plan


def write_manifest(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """List the Parquet files of `folder` in ``_manifest.json``, which marks the result complete.

    Returns
    -------
    dict
        `summary` with ``files``.
    """
    # The manifest's digests and its presence say what Spark's checksum and success files would.
    for leftover in [*folder.glob(".*.crc"), *folder.glob("_SUCCESS")]:
        leftover.unlink()
    files = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.glob("*.parquet"))
    ]
    manifest = {**summary, "files": files}
    temporary = folder / f"{MANIFEST_NAME}.tmp"
    temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    temporary.replace(folder / MANIFEST_NAME)
    return manifest


def _check_parameters(
    factor: float, algorithm: str, weights: Mapping[int, float], tolerance: float, max_iterations: int
) -> None:
    if not 0 <= factor < 1:
        message = f"factor is {factor}: it has to be at least 0 and less than 1"
        raise ValueError(message)
    if algorithm not in ALGORITHMS:
        message = f"algorithm is {algorithm}: it has to be one of {', '.join(ALGORITHMS)}"
        raise ValueError(message)
    if weights and algorithm == "tunkrank":
        message = "weights are for PageRank: in TunkRank every vertex has one tweet to give"
        raise ValueError(message)
    if any(not 0 < weight < math.inf for weight in weights.values()):
        message = "weights have to be greater than 0 and finite"
        raise ValueError(message)
    if not 0 < tolerance < 0.25:
        message = f"tolerance is {tolerance}: it has to be greater than 0 and less than 0.25"
        raise ValueError(message)
    if max_iterations < 1:
        message = f"max_iterations is {max_iterations}: it has to be at least 1"
        raise ValueError(message)


def _empty_folder(output: str | os.PathLike[str]) -> Path:
    uri = _uri(output)
    if not uri.startswith("file:"):
        message = f"output {uri} is not a local folder: this job writes its manifest through the local file system"
        raise ValueError(message)
    folder = Path(uri.removeprefix("file:"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        message = f"output {folder} already holds files: give a new or empty folder"
        raise FileExistsError(message)
    return folder


def _uri(path: str | os.PathLike[str]) -> str:
    """Name `path` the way this job compares names: not escaped, ``file:/...`` when local."""
    name = os.fspath(path)
    if name.startswith("file:"):
        return "file:/" + name.removeprefix("file:").lstrip("/")
    return name if "://" in name else "file:" + os.path.abspath(name)


def _sequence_of(name: str, sequences: dict[str, int]) -> int:
    """Find the sequence number of the file that Spark calls `name`, an escaped URI."""
    try:
        return sequences[_uri(unquote(name))]
    except KeyError:
        message = f"{name} was found below an input but is not one itself: list files, not folders or patterns"
        raise ValueError(message) from None


def _unpersist(checkpointed: DataFrame) -> None:
    """Free a local checkpoint through the RDD that holds it; DataFrame.unpersist() does not know of it."""
    checkpointed._jdf.logicalPlan().rdd().unpersist(False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_input_list(arguments: list[str]) -> list[tuple[str, int]]:
    """Interpret the ``--inputs`` of the command line.

    Parameters
    ----------
    arguments
        Parquet files in order, or one JSON file: a list of ``{"path": ..., "sequence": ...}``, with relative
        paths taken from the folder of the JSON file.
    """
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        source = Path(arguments[0])
        entries = json.loads(source.read_text(encoding="utf-8"))
        return [(os.path.join(source.parent, entry["path"]), int(entry["sequence"])) for entry in entries]
    return [(path, sequence) for sequence, path in enumerate(arguments, start=1)]


def read_weights(path: str) -> dict[int, float]:
    """Read the ``--weights`` of the command line."""
    with open(path, newline="", encoding="utf-8") as file:
        return {int(row["vertex"]): float(row["weight"]) for row in csv.DictReader(file)}


def run_as_script() -> None:
    """Run the job under spark-submit and print its manifest, as the last line.

    Spark-submit also writes to stdout what Python writes to stderr; warnings of libraries come before.
    """
    parser = argparse.ArgumentParser(description="Exact ranking of a snapshot of a follow graph.")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="tunkrank")
    parser.add_argument("--factor", "--retweet-probability", "--damping", type=float, required=True, metavar="P")
    parser.add_argument("--weights", metavar="FILE", help="CSV with a header: vertex,weight")
    parser.add_argument("--output", required=True, metavar="DIR", help="new or empty local folder")
    parser.add_argument("--tolerance", type=float, default=1e-10)
    parser.add_argument("--max-iterations", type=int, default=1000)
    parser.add_argument(
        "--inputs",
        nargs="+",
        required=True,
        metavar="FILE",
        help="Parquet files (kind, key, value), later ones win; or one JSON list of {path, sequence}",
    )
    options = parser.parse_args()
    session = SparkSession.builder.appName(options.algorithm).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        manifest = main(
            session,
            read_input_list(options.inputs),
            options.output,
            factor=options.factor,
            algorithm=options.algorithm,
            weights=read_weights(options.weights) if options.weights else None,
            tolerance=options.tolerance,
            max_iterations=options.max_iterations,
        )
    finally:
        session.stop()
    print(json.dumps(manifest))


if __name__ == "__main__":
    run_as_script()
