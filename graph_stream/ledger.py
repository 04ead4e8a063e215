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
from graph_stream.epoch import Summary, combined_hash
from graph_stream.eventtime import in_seconds

FIRST_CARRY: dict[str, Any] = {"epoch": 0, "total_records": 0, "total_rejected": 0}
EVENT_TIME_COLUMNS = ("watermark", "expired", "late", "tombstones")
"""What the row of an epoch has more with event time."""
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
    summaries: Sequence[Summary],
    cut: Mapping[str, Any],
    times: Mapping[str, float],
    held: Sequence[Mapping[str, int]],
    previous: Mapping[str, Any],
    published_at: float,
) -> dict[str, Any]:
    """Return the row of an epoch, JSON-able.

    ``held`` has the memory of each member's process, in bytes; ``summaries`` has one entry per ranking. Certificate
    and hash of the row are those of all: the widest bounds, and the hash of their hashes; ``rankings`` has each
    ranking's own where there are several.
    """
    summary, scheduled = summaries[0], times["scheduled"]
    several = {"rankings": [_ranking_row(each) for each in summaries]} if len(summaries) > 1 else {}
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
        "rounds": sum(each.rounds for each in summaries),
        "emissions": sum(each.emissions for each in summaries),
        "error_bound": max(each.error_bound for each in summaries),
        "e_plus": max(each.e_plus for each in summaries),
        "e_minus": max(each.e_minus for each in summaries),
        "rounding_limited": any(each.rounding_limited for each in summaries),
        "state_hash": combined_hash([each.state_hash for each in summaries]),
        "memory_bytes": sum(each["resident"] for each in held),
        "peak_memory_bytes": sum(each["peak"] for each in held),
        "offsets": cut["offsets"],
        **{name: cut[name] for name in ("quarantine", "names") if name in cut},
        **_staleness_of(cut, published_at),
        **several,
        **_event_time_of(summary),
    }


def _staleness_of(cut: Mapping[str, Any], published_at: float) -> dict[str, float]:
    """Return how long the epoch's oldest record has waited for its answer, where there is a target for that."""
    since = cut.get("since")
    return {} if since is None else {"staleness_ms": (published_at - since) * 1e3}


def _event_time_of(summary: Summary) -> dict[str, Any]:
    if summary.watermark is None:
        return {}
    counts = {name: getattr(summary, name) for name in EVENT_TIME_COLUMNS}
    return {**counts, "watermark": in_seconds(summary.watermark)}


def _ranking_row(summary: Summary) -> dict[str, Any]:
    names = ("rounds", "emissions", "error_bound", "e_plus", "e_minus", "rounding_limited", "state_hash")
    return {name: getattr(summary, name) for name in names}


def of_ranking(row: Mapping[str, Any], ranking: int) -> Mapping[str, Any]:
    """Return certificate, hash and rounds of one ranking in an epoch; of a run with one ranking, the row."""
    found: Mapping[str, Any] = row["rankings"][ranking] if "rankings" in row else row
    return found


def two_sided(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return ``e_plus`` and ``e_minus`` of an epoch or ranking; its ``error_bound`` for both in older rows."""
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
    return bytes(sink.getvalue())


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
