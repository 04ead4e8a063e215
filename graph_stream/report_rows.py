"""The rows a report is made of: what is recorded per epoch and per offline batch, and what is read off them.

The two schemas are the contract with whoever collects the rows; `results/README.md` describes them column by
column.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CheckpointMode = Literal["none", "async", "sync"]

EPOCH_SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("checkpoint", pa.string(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("scheduled_time", pa.float64(), nullable=False),
        pa.field("read_ms", pa.float64(), nullable=False),
        pa.field("wait_ms", pa.float64(), nullable=False),
        pa.field("online_ms", pa.float64(), nullable=False),
        pa.field("publish_ms", pa.float64(), nullable=False),
        pa.field("latency_ms", pa.float64(), nullable=False),
        pa.field("commit_latency_ms", pa.float64()),
        pa.field("records", pa.int64(), nullable=False),
        pa.field("rejected", pa.int64(), nullable=False),
        pa.field("inserted", pa.int64(), nullable=False),
        pa.field("deleted", pa.int64(), nullable=False),
        pa.field("unchanged", pa.int64(), nullable=False),
        pa.field("expired", pa.int64()),
        pa.field("late", pa.int64()),
        pa.field("vertices", pa.int64(), nullable=False),
        pa.field("edges", pa.int64(), nullable=False),
        pa.field("rounds", pa.int64(), nullable=False),
        pa.field("emissions", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("error_bound", pa.float64(), nullable=False),
        pa.field("state_hash", pa.string(), nullable=False),
        pa.field("versions", pa.string(), nullable=False),
    ]
)

BATCH_SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("vertices", pa.int64(), nullable=False),
        pa.field("edges", pa.int64(), nullable=False),
        pa.field("iterations", pa.int64(), nullable=False),
        pa.field("max_relative_drift", pa.float64()),
        pa.field("mean_relative_drift", pa.float64()),
        pa.field("error_bound", pa.float64()),
        pa.field("within_bound", pa.bool_()),
    ]
)

_QUANTILES_PER_MILLE = {"p50": 500, "p90": 900, "p99": 990, "p999": 999}


@dataclass(frozen=True)
class RunReport:
    """The rows of one run; checked when made, and from then on in schema order and sorted by epoch.

    Parameters
    ----------
    run_id : str
        The run, unique in a report.
    checkpoint : {"none", "async", "sync"}
        Its checkpoint mode.
    epochs : pyarrow.Table
        One row per epoch with the columns of `EPOCH_SCHEMA`, in any order.
    batches : pyarrow.Table
        One row per offline batch with the columns of `BATCH_SCHEMA`, in any order.
    environment : mapping of str to str
        Where it ran: versions, processor, cores.

    Raises
    ------
    ValueError
        The mode is none of the three, or rows do not fit their schema, belong to another run or mode, or
        repeat an epoch; the message names the run and the column.
    """

    run_id: str
    checkpoint: CheckpointMode
    epochs: pa.Table
    batches: pa.Table
    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        modes = get_args(CheckpointMode)
        if self.checkpoint not in modes:
            message = f"run {self.run_id!r}: checkpoint is {self.checkpoint!r}, not one of {', '.join(modes)}"
            raise ValueError(message)
        owner = {"run_id": self.run_id, "checkpoint": self.checkpoint}
        epochs = _conform(self.epochs, EPOCH_SCHEMA, owner, f"run {self.run_id!r}, epoch rows")
        batches = _conform(self.batches, BATCH_SCHEMA, owner, f"run {self.run_id!r}, batch rows")
        repeated = [epoch for epoch, count in Counter(epochs["epoch"].to_pylist()).items() if count > 1]
        if repeated:
            message = f"run {self.run_id!r}, epoch rows: epoch {repeated[0]} has more than one row"
            raise ValueError(message)
        object.__setattr__(self, "epochs", epochs)
        object.__setattr__(self, "batches", batches)


def after_warmup(epochs: pa.Table, warmup: int) -> pa.Table:
    """Return the epoch rows behind epoch `warmup`."""
    return epochs.filter(pc.greater(epochs["epoch"], warmup))


def audited(batches: pa.Table) -> pa.Table:
    """Return the batch rows that were compared with the online answer."""
    return batches.filter(batches["max_relative_drift"].is_valid())


def latency_summary(epochs: pa.Table, column: str = "latency_ms", warmup: int = 0) -> dict[str, float | None]:
    """Summarise a latency column after the warm-up.

    The q-quantile is the smallest recorded value with at least a share q of the values at or below it
    (nearest rank): a latency some epoch really had, never an interpolation. So p999 of fewer than 1,000
    epochs is their maximum.

    Parameters
    ----------
    epochs : pyarrow.Table
        Rows with `epoch` and the column.
    column : str
        The column, in milliseconds; rows where it is null do not count.
    warmup : int
        Epochs up to this one are left out.

    Returns
    -------
    dict of str to float or None
        `p50`, `p90`, `p99`, `p999` and `max` in milliseconds, ready for JSON; None where no row counts.
    """
    ordered = np.sort(after_warmup(epochs, warmup)[column].drop_null().to_numpy())
    if not ordered.size:
        return dict.fromkeys([*_QUANTILES_PER_MILLE, "max"])
    # In integers, because a product like 0.07 * 100 rounds to above 7 and would pick the next rank.
    ranks = {name: -(-ordered.size * share // 1000) for name, share in _QUANTILES_PER_MILLE.items()}
    return {**{name: float(ordered[rank - 1]) for name, rank in ranks.items()}, "max": float(ordered[-1])}


def edges_per_second(epochs: pa.Table, warmup: int = 0) -> float | None:
    """Measure the throughput after the warm-up.

    Records of the measured epochs behind the first, over the time from the first one's scheduled close to the
    last publish. Time lost to a crash counts, and so does work the first epoch left behind.

    Parameters
    ----------
    epochs : pyarrow.Table
        Rows of `EPOCH_SCHEMA`, sorted by epoch.
    warmup : int
        Epochs up to this one are left out.

    Returns
    -------
    float or None
        Edges per second; None with fewer than two measured epochs.
    """
    measured = after_warmup(epochs, warmup)
    if measured.num_rows < 2:
        return None
    closed = measured["scheduled_time"].to_numpy()
    published = closed + measured["latency_ms"].to_numpy() / 1000
    seconds = published.max() - closed[0]
    return float(measured["records"].to_numpy()[1:].sum() / seconds) if seconds > 0 else None


def _conform(table: pa.Table, schema: pa.Schema, owner: Mapping[str, str], what: str) -> pa.Table:
    """Return the table in schema order, sorted by epoch, or say what keeps it from being that."""
    found = {field.name: field.type for field in table.schema}
    faults = [f"{name} is not a column of the schema" for name in found if name not in schema.names]
    for field in schema:
        if field.name not in found:
            faults.append(f"{field.name} is missing")
        elif found[field.name] != field.type:
            faults.append(f"{field.name} is {found[field.name]}, expected {field.type}")
        elif table[field.name].null_count and not field.nullable:
            faults.append(f"{field.name} has {table[field.name].null_count} nulls")
        elif strangers := [v for v in table[field.name].unique().to_pylist() if v != owner.get(field.name, v)]:
            faults.append(f"{field.name} holds {strangers[0]!r}, expected {owner[field.name]!r}")
    if faults:
        message = f"{what} do not fit their schema: {'; '.join(faults)}"
        raise ValueError(message)
    return table.select(schema.names).cast(schema).sort_by("epoch")
