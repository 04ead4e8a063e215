"""The offline tier's part in a run: the exact answer of an epoch in Spark, and its comparison with the online one.

As a branch of the run's loop a batch reads the snapshot of its own epoch beside the stream; from the command
line the same computation runs on any kept epoch.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

import exoflow
from graph_stream.algorithms import Parameters
from graph_stream.certificate import error_bound
from graph_stream.config import RunConfig
from graph_stream.epoch import combine
from graph_stream.graph import PartitionState
from graph_stream.inline import data_of, is_inline
from graph_stream.namestore import Dictionary
from graph_stream.partition import load
from graph_stream.rounds import alone
from graph_stream.snapshot import Entry, Manifest
from spark.session import SparkUnavailable
from spark.step import SparkSteps


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The online answer against the exact one.

    Attributes
    ----------
    max_relative_drift, mean_relative_drift : float
        Of ``|online - exact| / exact`` over the vertices that have followers.
    within_bound : bool
        Whether every vertex lies within its certified error, and both answers have the same vertices.
    """

    max_relative_drift: float
    mean_relative_drift: float
    within_bound: bool


def compare(
    vertex: npt.NDArray[np.int64],
    influence: npt.NDArray[np.float64],
    e: float,
    exact_vertex: npt.NDArray[np.int64],
    exact_influence: npt.NDArray[np.float64],
    exact_relative_error: float,
) -> Comparison:
    """Compare two answers; the exact one is known to ``exact_relative_error``.

    Parameters
    ----------
    vertex, influence : ndarray, shape (n,)
        The online answer, in any order.
    e : float
        Its certificate.
    exact_vertex, exact_influence : ndarray, shape (m,)
        The exact answer, in any order.
    exact_relative_error : float
        Proven relative error of the exact answer.
    """
    order, exact_order = np.argsort(vertex), np.argsort(exact_vertex)
    if not np.array_equal(vertex[order], exact_vertex[exact_order]):
        return Comparison(float("inf"), float("inf"), within_bound=False)
    online, exact = influence[order], exact_influence[exact_order]
    distance = np.abs(online - exact)
    # Float64 rounds the published numbers themselves once.
    slack = exact_relative_error * exact + 4 * np.finfo(np.float64).eps * exact
    within = bool(np.all(distance <= error_bound(online, e) + slack))
    followed = exact > 0
    relative = distance[followed] / exact[followed]
    largest, mean = (float(relative.max()), float(relative.mean())) if len(relative) else (0.0, 0.0)
    return Comparison(largest, mean, within)


def batch_inputs(
    states: Sequence[dict[str, Any]], path_of: Callable[[exoflow.Blob], Path | None], scratch: Path
) -> list[tuple[str, int]]:
    """Return the files of a snapshot with their order, for a Spark job; ``scratch`` is for what has no file yet."""
    entries = [entry for state in states for entry in Manifest.from_json(state["entries"]).entries]

    def path_to(entry: Entry) -> Path | None:
        if not is_inline(entry):
            return path_of(entry.blob)
        path = scratch / f"{uuid.uuid4().hex}.parquet"
        path.write_bytes(data_of(entry))
        return path

    return [(str(path_to(entry)), entry.last_epoch) for entry in entries]


def name_inputs(dictionary: Dictionary, path_of: Callable[[exoflow.Blob], Path | None]) -> list[str]:
    """Return the files of a dictionary, for a Spark job."""
    return [str(path_of(part.blob)) for part in dictionary.entries]


def compute_exact(
    steps: SparkSteps,
    inputs: Sequence[tuple[str, int]],
    output: Path,
    key: str,
    parameters: Parameters,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Compute the exact answer into ``output``, once; return ``path``, ``seconds`` and the job's manifest.

    ``names`` are the files of the dictionary of a run with names.
    """
    from spark.jobs.ranking import main

    weights = dict(zip(parameters.weights.vertex.tolist(), parameters.weights.weight.tolist(), strict=True))
    options: dict[str, Any] = {"algorithm": parameters.algorithm, "factor": parameters.factor, "weights": weights}
    if names:
        options["names"] = names
    done = steps.run(main, inputs, output, key, **options)
    manifest = json.loads((Path(done["path"]) / "_manifest.json").read_text(encoding="utf-8"))
    return {**done, "manifest": manifest}


def compare_with(state: PartitionState, ranking: int, e: float, folder: Path, relative_error: float) -> Comparison:
    """Compare a ranking of a rebuilt online state with the exact answer in a batch's output folder."""
    exact = pq.read_table(folder)
    number = exact["number" if "number" in exact.column_names else "vertex"].to_numpy()
    vertex, influence = state.scores(ranking)
    return compare(vertex, influence, e, number, exact["influence"].to_numpy(), relative_error)


def output_name(epoch: int, config: RunConfig, ranking: int) -> str:
    """Return the name of the object folder that holds an epoch's batch for a ranking."""
    of_further_ranking = f"-{config.algorithm[ranking]}" if ranking else ""
    return f"batches/epoch-{epoch:012d}{of_further_ranking}"


@exoflow.actor(checkpoint="async", external=True, idempotent=True, num_cpus=0)
class Batches:
    """Runs a run's batches one after the other on one warm Spark session."""

    def __init__(self, threads: int) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="exoflow-spark-")
        self._steps = SparkSteps(Path(self._scratch.name), f"local[{threads}]")

    def compute(
        self,
        config: dict[str, Any],
        epoch: int,
        states: Sequence[dict[str, Any]],
        reader: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Compute the exact answer of an epoch, for each ranking, and compare the online one with it.

        In a run with names ``reader`` is the state that has them.

        Returns
        -------
        dict
            JSON-able: a row of a report's batches with ``path``, for the first ranking, but ``within_bound`` says
            whether all are; with several, ``rankings`` has a row for each. Where Spark cannot run (no Java),
            ``epoch`` and ``error``, which leaves the online part alone.
        """
        options = RunConfig.from_json(config)
        parameters = options.parameters()
        try:
            exact = [self._exact(options, ranking, epoch, states, reader) for ranking in range(len(parameters))]
        except SparkUnavailable as error:
            return {"epoch": epoch, "error": str(error)}
        state = PartitionState(parameters)
        state.restore(load(states, exoflow.context().read_blob), alone, epoch)
        rows = []
        for ranking, done in enumerate(exact):
            e = combine([state.results[ranking]], parameters[ranking]).error_bound
            found = compare_with(state, ranking, e, Path(done["path"]), done["manifest"]["relative_error"])
            manifest = {name: done["manifest"][name] for name in ("vertices", "edges", "iterations")}
            job = {"epoch": epoch, "path": done["path"], "seconds": done["seconds"]}
            rows.append({**job, **manifest, "error_bound": e, **dataclasses.asdict(found)})
        several = {"rankings": rows} if len(rows) > 1 else {}
        return {**rows[0], "within_bound": all(row["within_bound"] for row in rows), **several}

    def _exact(
        self,
        options: RunConfig,
        ranking: int,
        epoch: int,
        states: Sequence[dict[str, Any]],
        reader: dict[str, Any] | None,
    ) -> dict[str, Any]:
        context = exoflow.context()
        output = context.object_path(output_name(epoch, options, ranking))
        assert output is not None
        key = context.idempotency_key if ranking == 0 else f"{context.idempotency_key}-{ranking}"
        names = [] if reader is None else name_inputs(Dictionary.from_json(reader["names"]), context.blob_path)
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as scratch:
            inputs = batch_inputs(states, context.blob_path, Path(scratch))
            return compute_exact(self._steps, inputs, output, key, options.parameters()[ranking], names)
