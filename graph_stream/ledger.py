"""The rows of a run, one per epoch: made when an epoch is published, read back from journal and archive.

A row is the carry of the run's loop, so that it is committed with its epoch. Times are Unix seconds, those
that end in ``_ms`` milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import exoflow
from graph_stream.epoch import Summary

FIRST_CARRY: dict[str, Any] = {"epoch": 0, "total_records": 0, "total_rejected": 0}
_ARCHIVE_SCHEMA = pa.schema(
    [
        pa.field("epoch", pa.int64()),
        pa.field("row", pa.string()),
        pa.field("committed_at", pa.float64()),
        pa.field("bytes", pa.int64()),
        pa.field("batch", pa.string()),
    ]
)


def epoch_row(
    summary: Summary,
    cut: Mapping[str, Any],
    times: Mapping[str, float],
    previous: Mapping[str, Any],
    published_at: float,
) -> dict[str, Any]:
    """Return the row of an epoch, JSON-able."""
    scheduled = times["scheduled"]
    return {
        "epoch": summary.epoch,
        "scheduled_time": scheduled,
        "read_started": times["read_started"],
        "published_at": published_at,
        "read_ms": times["read_seconds"] * 1e3,
        "wait_ms": (times["online_started"] - scheduled) * 1e3,
        "online_ms": (times["online_ended"] - times["online_started"]) * 1e3,
        "publish_ms": (published_at - times["online_ended"]) * 1e3,
        "records": cut["records"],
        "rejected": cut["rejected"],
        "total_records": previous["total_records"] + cut["records"],
        "total_rejected": previous["total_rejected"] + cut["rejected"],
        "inserted": summary.inserted,
        "deleted": summary.deleted,
        "unchanged": summary.unchanged + summary.self_loops,
        "vertices": summary.vertices,
        "edges": summary.edges,
        "rounds": summary.rounds,
        "emissions": summary.emissions,
        "error_bound": summary.error_bound,
        "e_plus": summary.e_plus,
        "e_minus": summary.e_minus,
        "rounding_limited": summary.rounding_limited,
        "state_hash": summary.state_hash,
        "offsets": cut["offsets"],
    }


def two_sided(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return ``e_plus`` and ``e_minus`` of an epoch; its ``error_bound`` for both where an older version wrote it."""
    e = row["error_bound"]
    return row.get("e_plus", e), row.get("e_minus", e)


def archive(iterations: Sequence[exoflow.IterationView]) -> bytes:
    """Return epochs that leave the journal as Parquet bytes."""
    sink = pa.BufferOutputStream()
    entries = [
        {**entry, "row": json.dumps(entry["row"]), "batch": json.dumps(entry["batch"])}
        for entry in _entries(iterations)
    ]
    pq.write_table(pa.Table.from_pylist(entries, _ARCHIVE_SCHEMA), sink)
    return sink.getvalue().to_pybytes()


def read(view: exoflow.LoopView, checkpoint: str) -> list[dict[str, Any]]:
    """Return all committed epochs of a run in order.

    Returns
    -------
    list of dict
        ``epoch``, ``row``, ``committed_at`` (None where an owner died before it could tell), ``bytes`` (of
        the checkpoint; None where the epoch has none) and ``batch`` (the output of its offline batch, or
        None).
    """
    entries: dict[int, dict[str, Any]] = {}
    for data in view.archived:
        for entry in pq.read_table(pa.BufferReader(data)).to_pylist():
            entry["row"], entry["batch"] = json.loads(entry["row"]), json.loads(entry["batch"])
            entries[entry["epoch"]] = entry
    for entry in _entries(view.iterations):
        entries[entry["epoch"]] = entry
    for iteration in view.iterations:
        if "batch" in iteration.tasks and iteration.number in entries:
            # In mode none a batch is committed long before its epoch is, and lies beside it.
            entries[iteration.number]["batch"] = iteration.tasks["batch"].output
    ordered = [entries[epoch] for epoch in sorted(entries)]
    if checkpoint == "none":
        for entry in ordered:
            entry["committed_at"] = view.finished_at
    elif ordered and ordered[-1]["committed_at"] is None:
        ordered[-1]["committed_at"] = view.finished_at
    return ordered


def _entries(iterations: Iterable[exoflow.IterationView]) -> list[dict[str, Any]]:
    entries = []
    for iteration in iterations:
        published = iteration.tasks.get("publish")
        if published is None:
            continue
        applied, batch = iteration.tasks.get("apply"), iteration.tasks.get("batch")
        states = None if applied is None else applied.state
        entries.append(
            {
                "epoch": iteration.number,
                "row": published.output,
                "committed_at": published.committed_at,
                "bytes": None if states is None else sum(state["written_bytes"] for state in states),
                "batch": None if batch is None else batch.output,
            }
        )
    return entries
