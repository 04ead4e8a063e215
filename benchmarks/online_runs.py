"""Whole runs of the online tier as the benchmarks need them: started here, read back from the store."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_stream import Pipeline, pipeline
from graph_stream.runs import latencies_ms, open_run
from ingest import EpochBatch, EpochReader, open_source, write_rmat

Milliseconds = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class WholeRun:
    """A finished run.

    Attributes
    ----------
    rows : list of dict
        The rows of its epochs; see `graph_stream.ledger`.
    latency_ms, commit_latency_ms : ndarray of float64, shape (epochs,)
        From the scheduled close of each epoch to its answer and to its commit (nan: no commit of its own).
    checkpoint_bytes : ndarray of int64, shape (epochs,)
        Bytes of each epoch's delta, 0 where it has none.
    """

    rows: list[dict[str, Any]]
    latency_ms: Milliseconds
    commit_latency_ms: Milliseconds
    checkpoint_bytes: npt.NDArray[np.int64]

    @property
    def edges_per_second(self) -> float:
        """Records over the time from the first one read to the last answer."""
        first, last = self.rows[0], self.rows[-1]
        return float(last["total_records"] / (last["published_at"] - first["read_started"]))

    @property
    def state_hash(self) -> str:
        """Fingerprint of the last state."""
        return str(self.rows[-1]["state_hash"])

    @property
    def error_bound(self) -> float:
        """The last certificate."""
        return float(self.rows[-1]["error_bound"])


def whole_run(folder: Path, *sources: str, store: str | None = None, **options: Any) -> WholeRun:
    """Run the sources to their end in a new store, and read what was committed.

    Parameters
    ----------
    folder : Path
        Where a local store is made. It stays: a file system may be slow for minutes after many files were removed
        (ext4 without a journal looks at each of them), and the next run would be measured in these.
    *sources : str
        What to read.
    store : str, optional
        The store to use instead.
    **options
        Of `graph_stream.Pipeline`.
    """
    uri = store or tempfile.mkdtemp(dir=folder, prefix="store-")
    Pipeline(*sources, **options).run(run_id="bench", store=uri)
    return read_run(uri)


def paced_tail(folder: Path, source: str, epochs: int, rate: float, **options: Any) -> WholeRun:
    """Run a source's first epochs as fast as they go, and the rest at a rate (records per second)."""

    def watch(row: Mapping[str, Any]) -> None:
        if row["epoch"] == epochs:
            raise KeyboardInterrupt

    store = tempfile.mkdtemp(dir=folder, prefix="store-")
    with contextlib.suppress(KeyboardInterrupt):
        Pipeline(source, **options).run(run_id="bench", store=store, progress=watch)
    pipeline.resume("bench", store, rate=rate)
    return read_run(store)


def read_run(store: str) -> WholeRun:
    """Read the run of a store."""
    run = open_run("bench", store)
    times = [latencies_ms(run.config.checkpoint, entry) for entry in run.entries]
    return WholeRun(
        [entry["row"] for entry in run.entries],
        np.array([latency for latency, _ in times]),
        np.array([np.nan if commit is None else commit for _, commit in times]),
        np.array([entry["bytes"] or 0 for entry in run.entries], np.int64),
    )


def rmat_file(folder: Path, scale: int, edges: int, deletes: float = 0.0) -> Path:
    """Return an R-MAT stream as a text file, written if it is not there."""
    path = folder / f"rmat-{scale}-{edges}-{deletes:g}.txt"
    if not path.exists():
        write_rmat(path, scale, edges, 1, deletes)
    return path


def columns(deletes: float) -> str:
    """Return what the columns of `rmat_file` are."""
    return "src,dst,op" if deletes else "src,dst"


def batches_of(source: str, epoch_edges: int, columns: str = "src,dst") -> list[EpochBatch]:
    """Return all epochs of a source, read into memory."""
    with EpochReader([open_source(source, columns)], epoch_edges) as reader:
        batches = [reader.read(reader.start())]
        while not batches[-1].last:
            batches.append(reader.read(batches[-1].end))
        return batches


def percentile(values: Milliseconds, share: float) -> float:
    """Return the smallest value with at least that share of the values at or below it."""
    ordered = np.sort(values)
    return float(ordered[max(0, int(np.ceil(share * len(ordered))) - 1)])
