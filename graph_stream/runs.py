"""A run as its readers see it: epochs, scores, and the snapshot of an epoch, from the store alone.

Reading needs no Ray and disturbs nobody: what is being read is pinned, so that a running owner does not
collect it meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

import exoflow
from exoflow.blobs import Blobs, object_key
from exoflow.pins import pin
from exoflow.storage import Store, open_store
from graph_stream import ledger, namestore, quarantine, snapshot, sources
from graph_stream.certificate import error_bound
from graph_stream.config import RunConfig
from graph_stream.epoch import combine, combined_hash
from graph_stream.errors import ConfigError, EpochNotFound
from graph_stream.eventtime import EventTimes
from graph_stream.graph import PartitionState
from graph_stream.inline import is_inline
from graph_stream.namelist import NameList
from graph_stream.namestore import Dictionary
from graph_stream.naming import load_table, with_known_numbers
from graph_stream.offline import batch_inputs, name_inputs
from graph_stream.partition import load
from graph_stream.pipeline import LOOP
from graph_stream.publication import with_names
from graph_stream.report_rows import BATCH_SCHEMA, EPOCH_SCHEMA, RunReport, latency_summary
from graph_stream.rounds import alone
from graph_stream.snapshot import Manifest
from graph_stream.topk import top_k
from ingest import BadRecord, EpochReader
from ingest.whole import written_whole

ATTEMPTS = 5
"""How often a reader looks anew for what is collected as fast as it looks."""

SCORES_SCHEMA = pa.schema(
    [
        pa.field("vertex", pa.int64(), nullable=False),
        pa.field("influence", pa.float64(), nullable=False),
        pa.field("error_bound", pa.float64(), nullable=False),
    ]
)
"""Of a run with names, ``vertex`` is a string."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read from its store at one moment.

    Attributes
    ----------
    entries : list of dict
        Committed epochs in order; see `ledger.read`.
    """

    run_id: str
    store: Store
    config: RunConfig
    view: exoflow.LoopView
    entries: list[dict[str, Any]]

    @property
    def newest(self) -> int:
        """The newest committed epoch; 0 before the first."""
        return self.entries[-1]["epoch"] if self.entries else 0

    def epoch_or_newest(self, epoch: int | None) -> int:
        """Return ``epoch``, or the newest committed one.

        Raises
        ------
        EpochNotFound
            When it is not committed.
        """
        if epoch is None:
            epoch = self.newest
        if not any(entry["epoch"] == epoch for entry in self.entries):
            known = f"committed are epochs 1 to {self.newest}" if self.entries else "none is committed yet"
            message = f"run {self.run_id!r} has no committed epoch {epoch}; {known}"
            raise EpochNotFound(message)
        return epoch

    def row(self, epoch: int) -> dict[str, Any]:
        """Return the row of a committed epoch."""
        row: dict[str, Any] = next(entry["row"] for entry in self.entries if entry["epoch"] == epoch)
        return row


def open_run(run_id: str, store: str) -> Run:
    """Read a run; raises exoflow.WorkflowNotFound, ConfigError, CorruptRecord."""
    view = exoflow.read_loop(run_id, loop=LOOP, store=store)
    if "config" not in view.plan.metadata:
        message = f"{run_id!r} is a workflow, but not a run of graph-stream"
        raise ConfigError(message)
    config = RunConfig.from_json(view.plan.metadata["config"])
    return Run(run_id, open_store(store, create=False), config, view, ledger.read(view, config.checkpoint))


# --- snapshots and scores ---------------------------------------------------------------------------------


@contextlib.contextmanager
def snapshot_of(run: Run, epoch: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Pin and yield the newest snapshot not after ``epoch``: the members' manifests, and its epoch.

    Raises
    ------
    EpochNotFound
        When no such snapshot is kept.
    """
    found = _newest_snapshot(run, epoch)
    entries = [entry for state in found for entry in Manifest.from_json(state["entries"]).entries]
    blobs = [entry.blob for entry in entries if not is_inline(entry)]
    with pin(run.store, run.run_id, blobs):
        # The pin counts only if the epoch is still in the journal now; see exoflow.pins.
        again = open_run(run.run_id, run.store.uri)
        if _newest_snapshot(again, epoch) != found:
            message = f"epoch {epoch} of run {run.run_id!r} was collected while it was looked up; try again"
            raise EpochNotFound(message)
        yield found, found[0]["epoch"]


def _newest_snapshot(run: Run, epoch: int) -> list[dict[str, Any]]:
    states: dict[int, list[dict[str, Any]]] = {}
    for iteration in run.view.iterations:
        applied = iteration.tasks.get("apply")
        if applied is not None and applied.state is not None:
            states[iteration.number] = applied.state
    for task, state in run.view.snapshots.items():
        if task.startswith("apply["):
            states[state[0]["epoch"]] = state
    usable = [number for number in states if number <= epoch]
    if not usable:
        kept = f"kept are snapshots from epoch {min(states)} on" if states else "no snapshot is kept"
        message = (
            f"the state of epoch {epoch} of run {run.run_id!r} can no longer be rebuilt: {kept} "
            f"(--keep-epochs {run.config.keep_epochs}, --checkpoint {run.config.checkpoint})"
        )
        raise EpochNotFound(message)
    return states[max(usable)]


def state_at(run: Run, epoch: int) -> PartitionState:
    """Rebuild the whole graph and ranking at a committed epoch, and check it against the epoch's hash.

    An epoch without a snapshot of its own is rebuilt from the nearest older one by replaying the records in
    between from the source.

    Raises
    ------
    EpochNotFound
        When it cannot be rebuilt.
    exoflow.CorruptRecord
        When what was rebuilt is not what was committed.
    """
    blobs = Blobs(run.store, run.run_id)
    with snapshot_of(run, epoch) as (states, base):
        state = PartitionState(run.config.parameters())
        state.restore(load(states, blobs.read), alone, base)
    _replay(run, state, base, epoch)
    rebuilt = combined_hash(
        [
            combine([result], parameters).state_hash
            for result, parameters in zip(state.results, run.config.parameters(), strict=True)
        ]
    )
    committed = run.row(epoch)["state_hash"]
    if rebuilt != committed:
        message = (
            f"epoch {epoch} of run {run.run_id!r} rebuilds to state {rebuilt}, but {committed} was committed; "
            "the store or the source was altered"
        )
        raise exoflow.CorruptRecord(run.run_id, message)
    return state


def _replay(run: Run, state: PartitionState, base: int, epoch: int) -> None:
    if base == epoch:
        return
    cuts = {
        iteration.number: iteration.tasks["cut"].output for iteration in run.view.iterations if "cut" in iteration.tasks
    }
    table = None
    if run.config.has_names:
        with dictionary_of(run, epoch) as dictionary:
            table = load_table(dictionary, Blobs(run.store, run.run_id).read)
    with EpochReader(sources.opened(run.config), run.config.epoch_edges) as reader:
        for number in range(base + 1, epoch + 1):
            if number not in cuts:
                message = f"the offsets of epoch {number} are no longer kept; ask for a newer epoch than {epoch}"
                raise EpochNotFound(message)
            batch = sources.records_of(reader, cuts[number])
            if table is not None:
                batch = with_known_numbers(batch, table, cuts[number]["names"], run.config)
            times = EventTimes.of_epoch(batch.time, cuts[number])
            state.apply(number, batch.src, batch.dst, batch.op, alone, times)


@contextlib.contextmanager
def dictionary_of(run: Run, epoch: int) -> Iterator[Dictionary]:
    """Pin and yield the dictionary of a run with names, as its newest epochs know it or an older one does.

    It begins with what ``epoch`` knows: names are only added.

    Raises
    ------
    EpochNotFound
        When it was collected while it was looked up.
    """
    for _ in range(ATTEMPTS):
        found = _dictionary(run, epoch)
        with pin(run.store, run.run_id, [part.blob for part in found.entries]):
            # The pin counts only if a journal that was read after it still names them; see exoflow.pins.
            run = open_run(run.run_id, run.store.uri)
            if _dictionary(run, epoch) == found:
                yield found
                return
    message = f"the names of epoch {epoch} of run {run.run_id!r} were collected while they were looked up; try again"
    raise EpochNotFound(message)


def _dictionary(run: Run, epoch: int) -> Dictionary:
    """Return the dictionary of the first state from ``epoch`` on that is kept; of the epoch itself if that is."""
    states = {
        iteration.number: iteration.tasks["cut"].state
        for iteration in run.view.iterations
        if "cut" in iteration.tasks and iteration.tasks["cut"].state is not None
    }
    for task, state in run.view.snapshots.items():
        if task.startswith("cut["):
            states[int(task[len("cut[") : -1])] = state
    known = [number for number in states if number >= epoch]
    if not known:
        message = f"the names of epoch {epoch} of run {run.run_id!r} are not there"
        raise EpochNotFound(message)
    return Dictionary.from_json(states[min(known)]["names"])


def names_at(run: Run, epoch: int) -> NameList:
    """Return the names that are known at a committed epoch of a run with names, by number.

    Raises
    ------
    EpochNotFound
        When they were collected while they were looked up.
    CorruptSnapshot, exoflow.CorruptRecord
        When they are not those that were written.
    """
    with dictionary_of(run, epoch) as dictionary:
        return namestore.load(dictionary, Blobs(run.store, run.run_id).read, count=run.row(epoch)["names"])


@contextlib.contextmanager
def batch_files(run: Run, epoch: int, scratch: Path) -> Iterator[list[tuple[str, int]]]:
    """Yield the snapshot files of an epoch with their order, for a Spark job; pinned while they are read.

    For an epoch without a snapshot of its own the state is rebuilt and written to ``scratch``.
    """
    with snapshot_of(run, epoch) as (states, base):
        if base == epoch:
            blobs = Blobs(run.store, run.run_id)
            yield batch_inputs(states, lambda blob: blobs.path(blobs.key(blob)), scratch)
            return
    rebuilt = scratch / "snapshot.parquet"
    rebuilt.write_bytes(snapshot.encode(state_at(run, epoch).capture_all(), 1, epoch))
    yield [(str(rebuilt), epoch)]


@contextlib.contextmanager
def name_files(run: Run, epoch: int) -> Iterator[list[str]]:
    """Yield the files that hold the names of a run, for a Spark job; pinned while they are read. None without names."""
    if not run.config.has_names:
        yield []
        return
    blobs = Blobs(run.store, run.run_id)
    with dictionary_of(run, epoch) as dictionary:
        yield name_inputs(dictionary, lambda blob: blobs.path(blobs.key(blob)))


def object_path(run: Run, name: str) -> Path:
    """Return the path of a run's named object; raises ConfigError where the store is no local folder."""
    path = Blobs(run.store, run.run_id).path(object_key(run.run_id, name))
    if path is None:
        message = f"batches need a store in a local folder, not {run.store.uri}"
        raise ConfigError(message)
    return path


def scores(run: Run, epoch: int, algorithm: str | None = None) -> pa.Table:
    """Return the influence of every vertex at a committed epoch, by vertex, with `SCORES_SCHEMA`.

    ``algorithm`` chooses among a run's rankings; by default the first. Names are in the order in which they first
    came. Raises ConfigError for a ranking that the run has not.
    """
    return _in_names(run, epoch, _scores(run, epoch, algorithm))


def _in_names(run: Run, epoch: int, table: pa.Table) -> pa.Table:
    return with_names(table, names_at(run, epoch)) if run.config.has_names else table


def _scores(run: Run, epoch: int, algorithm: str | None) -> pa.Table:
    ranking = run.config.ranking_of(algorithm)
    state = state_at(run, epoch)
    vertex, influence = state.scores(ranking)
    order = np.argsort(vertex)
    bound = error_bound(influence[order], ledger.of_ranking(run.row(epoch), ranking)["error_bound"])
    return pa.table([vertex[order], influence[order], bound], schema=SCORES_SCHEMA)


def write_scores(table: pa.Table, path: Path) -> None:
    """Write scores whole or not at all; the suffix chooses Parquet or CSV.

    Raises
    ------
    ConfigError
        On another suffix.
    """
    if path.suffix not in (".parquet", ".csv"):
        message = f"cannot write scores to {path}: use a name that ends in .parquet or .csv"
        raise ConfigError(message)
    with written_whole(path) as part:
        if path.suffix == ".parquet":
            pq.write_table(table, part)
        else:
            pyarrow.csv.write_csv(table, part)


def top(run: Run, epoch: int, k: int, algorithm: str | None = None) -> pa.Table:
    """Return the ``k`` most influential vertices at a committed epoch, best first, and what is proven of them.

    Returns
    -------
    pyarrow.Table
        The columns of `scores`, and the booleans ``proven`` and ``in_order`` of `topk.TopK`.
    """
    table = _scores(run, epoch, algorithm)
    e_plus, e_minus = ledger.two_sided(ledger.of_ranking(run.row(epoch), run.config.ranking_of(algorithm)))
    found = top_k(table["vertex"].to_numpy(), table["influence"].to_numpy(), e_plus, e_minus, k)
    best = _in_names(run, epoch, table.take(found.index))
    return best.append_column("proven", [found.proven]).append_column("in_order", [found.in_order])


# --- bad records ------------------------------------------------------------------------------------------


def bad_records(run: Run, epoch: int | None = None) -> Iterator[tuple[int, list[BadRecord]]]:
    """Yield the bad records of committed epochs, of one or of all, epoch by epoch; epochs without are passed over.

    Raises
    ------
    EpochNotFound
        When the epoch is not committed.
    exoflow.CorruptRecord
        When what was kept is missing or damaged.
    """
    rows = [entry["row"] for entry in run.entries] if epoch is None else [run.row(run.epoch_or_newest(epoch))]
    for row in rows:
        name = quarantine.name_in(row)
        if name is not None:
            yield row["epoch"], quarantine.decode(row, run.store.get(object_key(run.run_id, name)))


def write_bad_records(bad: Iterable[tuple[int, list[BadRecord]]], path: Path) -> Counter[str]:
    """Write bad records as Parquet with `quarantine.TABLE_SCHEMA`, whole or not at all; return how many by reason.

    Raises
    ------
    ConfigError
        Where the name does not end in ``.parquet``.
    """
    if path.suffix != ".parquet":
        message = f"cannot write bad records to {path}: use a name that ends in .parquet"
        raise ConfigError(message)
    reasons: Counter[str] = Counter()
    with written_whole(path) as part, pq.ParquetWriter(part, quarantine.TABLE_SCHEMA) as writer:
        for epoch, records in bad:
            writer.write_table(quarantine.table_of(epoch, records))
            reasons.update(record.reason for record in records)
    return reasons


# --- tables for reports -----------------------------------------------------------------------------------


def report_of(run: Run, environment: Mapping[str, str] | None = None) -> RunReport:
    """Return the rows of a run in the form that reports take."""
    mode = run.config.checkpoint
    versions = json.dumps(dict(environment or {}), sort_keys=True)
    epochs = [_report_row(run, entry, versions) for entry in run.entries]
    batches = [
        {
            "run_id": run.run_id,
            **{name: entry["batch"].get(name) for name in BATCH_SCHEMA.names if name != "run_id"},
        }
        for entry in run.entries
        if entry["batch"] is not None and "error" not in entry["batch"]
    ]
    return RunReport(
        run.run_id,
        mode,  # type: ignore[arg-type]
        pa.Table.from_pylist(epochs, EPOCH_SCHEMA),
        pa.Table.from_pylist(batches, BATCH_SCHEMA),
        dict(environment or {}),
    )


def _report_row(run: Run, entry: dict[str, Any], versions: str) -> dict[str, Any]:
    row = entry["row"]
    latency, commit_latency = latencies_ms(run.config.checkpoint, entry)
    shown = {name: row[name] for name in EPOCH_SCHEMA.names if name in row}
    publish_ms = row["publish_ms"] + (latency - (row["published_at"] - row["scheduled_time"]) * 1e3)
    return {
        **shown,
        "run_id": run.run_id,
        "checkpoint": run.config.checkpoint,
        "latency_ms": latency,
        "commit_latency_ms": commit_latency,
        "publish_ms": publish_ms,
        "bytes": entry["bytes"],
        "versions": versions,
    }


def latencies_ms(checkpoint: str, entry: dict[str, Any]) -> tuple[float, float | None]:
    """Return latency and commit latency of an epoch; in sync the answer counts once it is committed."""
    row, committed_at = entry["row"], entry["committed_at"]
    published_at = row["published_at"]
    if checkpoint == "sync" and committed_at is not None:
        published_at = max(published_at, committed_at)
    latency = (published_at - row["scheduled_time"]) * 1e3
    return latency, None if committed_at is None else (committed_at - row["scheduled_time"]) * 1e3


def staleness_ms(checkpoint: str, entry: dict[str, Any]) -> dict[str, float]:
    """Return how stale an epoch's answer was, of a run with a target for that; counted as `latencies_ms` does."""
    row = entry["row"]
    if "staleness_ms" not in row:
        return {}
    latency, _ = latencies_ms(checkpoint, entry)
    waited_ms = (row["scheduled_time"] - row["published_at"]) * 1e3 + row["staleness_ms"]
    return {"staleness_ms": waited_ms + latency}


def summary(run: Run) -> dict[str, Any]:
    """Return the object that ``--json`` prints for a run: totals and latencies over all its epochs."""
    epochs = report_of(run).epochs
    last = run.entries[-1]["row"] if run.entries else None
    return {
        "run_id": run.run_id,
        "status": str(run.view.status),
        "epochs": run.newest,
        "edges": 0 if last is None else last["total_records"],
        "rejected": 0 if last is None else last["total_rejected"],
        "batches": sum(1 for entry in run.entries if entry["batch"] is not None and "error" not in entry["batch"]),
        "state_hash": None if last is None else last["state_hash"],
        "error_bound": None if last is None else last["error_bound"],
        "latency_ms": latency_summary(epochs, "latency_ms"),
        "commit_latency_ms": latency_summary(epochs, "commit_latency_ms"),
    }
