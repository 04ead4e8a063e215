"""The tables of a report, as Markdown: functions from runs to text."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from graph_stream.report_rows import (
    CheckpointMode,
    RunReport,
    after_warmup,
    audited,
    edges_per_second,
    latency_summary,
)

MODE_LABELS: Mapping[CheckpointMode, str] = {"none": "NoCkpt", "async": "AsyncCkpt", "sync": "SyncCkpt"}

_MISSING = "–"


def run_labels(runs: Sequence[RunReport], labels: Mapping[str, str] | None = None) -> dict[str, str]:
    """Name each run for tables and legends.

    Parameters
    ----------
    runs : sequence of RunReport
        The runs.
    labels : mapping of str to str, optional
        Label by run id. Default: NoCkpt, AsyncCkpt or SyncCkpt after the mode, followed by the run id where
        several runs share a mode.

    Returns
    -------
    dict of str to str
        A label for every run id; no two are the same.

    Raises
    ------
    ValueError
        A run is there twice, two runs have one label, or a label is for a run that is not there.
    """
    wanted = labels or {}
    modes = Counter(run.checkpoint for run in runs)
    names = {}
    for run in runs:
        label = MODE_LABELS[run.checkpoint]
        names[run.run_id] = wanted.get(run.run_id, label if modes[run.checkpoint] == 1 else f"{label} {run.run_id}")
    if len(names) < len(runs):
        twice = next(run_id for run_id, count in Counter(run.run_id for run in runs).items() if count > 1)
        message = f"run {twice!r} is in the report twice; name each run once"
        raise ValueError(message)
    for run_id, label in wanted.items():
        if run_id not in names:
            message = f"label {label!r} is for run {run_id!r}, which is not in the report"
            raise ValueError(message)
    for label, count in Counter(names.values()).items():
        if count > 1:
            message = f"label {label!r} names {count} runs; give each run its own label"
            raise ValueError(message)
    return names


def percentile_table(runs: Sequence[RunReport], warmup: int = 0, labels: Mapping[str, str] | None = None) -> str:
    """Tabulate latency and commit latency, with ratios to the run without checkpoints where there is one.

    Parameters
    ----------
    runs : sequence of RunReport
        The runs, one row each.
    warmup : int
        Epochs up to this one are left out, and the text says so.
    labels : mapping of str to str, optional
        Label by run id; see `run_labels`.

    Returns
    -------
    str
        Markdown: two tables and notes on what the figures mean.

    Raises
    ------
    ValueError
        As `run_labels`.
    """
    names = run_labels(runs, labels)
    baseline = next((run for run in runs if run.checkpoint == "none"), None)
    notes = _notes(runs, names, baseline, warmup)
    return "\n\n".join(
        [
            "## Latency (ms): scheduled close of an epoch to its answer published",
            _latency_table(runs, names, baseline, warmup),
            "## Commit latency (ms): scheduled close of an epoch to its commit",
            _commit_table(runs, names, warmup),
            "\n".join(f"- {note}" for note in notes),
        ]
    )


def batch_table(runs: Sequence[RunReport], labels: Mapping[str, str] | None = None) -> str:
    """Tabulate how long the offline batches took and how their audits ended.

    Parameters
    ----------
    runs : sequence of RunReport
        The runs, one row each; the warm-up counts here.
    labels : mapping of str to str, optional
        Label by run id; see `run_labels`.

    Returns
    -------
    str
        A Markdown table: durations in seconds, the largest relative drift and the certificate it was held
        against.
    """
    names = run_labels(runs, labels)
    header = [
        "label",
        "run",
        "batches",
        "median s",
        "max s",
        "audited",
        "largest drift",
        "bound there",
        "audit",
    ]
    rows = []
    for run in runs:
        audits = audited(run.batches).sort_by("max_relative_drift")
        worst = audits.to_pylist()[-1] if audits.num_rows else {}
        seconds = run.batches["seconds"].to_numpy()
        rows.append(
            [
                *(names[run.run_id], run.run_id),
                f"{run.batches.num_rows:,}",
                _number(np.median(seconds) if seconds.size else None, ",.2f"),
                _number(seconds.max() if seconds.size else None, ",.2f"),
                f"{audits.num_rows:,}",
                _number(worst.get("max_relative_drift"), ".2e"),
                _number(worst.get("error_bound"), ".2e"),
                _verdict(audits["within_bound"].to_pylist()),
            ]
        )
    return markdown(header, rows, text_columns=2)


def environment_table(runs: Sequence[RunReport], labels: Mapping[str, str] | None = None) -> str:
    """Tabulate where the runs ran: one column where they agree, else one per run."""
    names = run_labels(runs, labels)
    keys = sorted({key for run in runs for key in run.environment})
    agree = all(run.environment == runs[0].environment for run in runs)
    columns = {"every run": runs[0]} if agree else {names[run.run_id]: run for run in runs}
    rows = [[key, *(run.environment.get(key, _MISSING) for run in columns.values())] for key in keys]
    return markdown(["", *columns], rows, text_columns=1 + len(columns))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """Lay out a Markdown table that reads as well raw as rendered.

    Parameters
    ----------
    header : sequence of str
        Column names.
    rows : iterable of sequence of str
        Cells, as many per row as the header has.
    text_columns : int
        So many columns from the left are aligned to the left; the others hold figures, aligned to the right.

    Returns
    -------
    str
        The table without a final newline.
    """
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    sides = [str.ljust if column < text_columns else str.rjust for column in range(len(widths))]
    lines = [[pad(cell, width) for pad, cell, width in zip(sides, row, widths, strict=True)] for row in cells]
    rule = ["-" * (width - 1) + ("-" if pad is str.ljust else ":") for pad, width in zip(sides, widths, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _latency_table(runs: Sequence[RunReport], names: Mapping[str, str], baseline: RunReport | None, warmup: int) -> str:
    header = ["label", "run", "checkpoint", "epochs", "edges/s", "p50", "p90", "p99", "p99.9", "max"]
    header += [f"{name} ratio" for name in ("p50", "p99") if baseline]
    base = latency_summary(baseline.epochs, warmup=warmup) if baseline else {}
    rows = []
    for run in runs:
        summary = latency_summary(run.epochs, warmup=warmup)
        rows.append(
            [
                *(names[run.run_id], run.run_id, run.checkpoint),
                f"{after_warmup(run.epochs, warmup).num_rows:,}",
                _number(edges_per_second(run.epochs, warmup), ",.0f"),
                *(_number(value, ",.2f") for value in summary.values()),
                *(_ratio(summary[name], base[name]) for name in ("p50", "p99") if baseline),
            ]
        )
    return markdown(header, rows, text_columns=3)


def _commit_table(runs: Sequence[RunReport], names: Mapping[str, str], warmup: int) -> str:
    header = ["label", "run", "checkpoint", "commits", "bytes/epoch", "p50", "p90", "p99", "p99.9", "max"]
    rows = []
    for run in runs:
        measured = after_warmup(run.epochs, warmup)
        summary = latency_summary(measured, "commit_latency_ms")
        rows.append(
            [
                *(names[run.run_id], run.run_id, run.checkpoint),
                f"{measured.num_rows - measured['commit_latency_ms'].null_count:,}",
                _number(pc.mean(measured["bytes"]).as_py(), ",.0f"),
                *(_number(value, ",.2f") for value in summary.values()),
            ]
        )
    return markdown(header, rows, text_columns=3)


def _notes(runs: Sequence[RunReport], names: Mapping[str, str], baseline: RunReport | None, warmup: int) -> list[str]:
    notes = [f"Epochs 1 to {warmup:,} are warm-up and left out." if warmup > 0 else "No warm-up: every epoch counts."]
    for run in runs:
        if not after_warmup(run.epochs, warmup).num_rows:
            count = run.epochs.num_rows
            why = f"its {count:,} epochs end within the warm-up" if count else "the run has no epochs"
            notes.append(f"{names[run.run_id]}: nothing measured, {why}.")
    notes += [
        "A percentile is the smallest recorded value with at least that share of the values at or below it, "
        "so p99.9 of fewer than 1,000 epochs is their maximum.",
        "edges/s: records of the measured epochs behind the first, over the time from the first one's "
        "scheduled close to the last publish.",
    ]
    if baseline:
        notes.append(f"Ratios are to {names[baseline.run_id]} ({baseline.run_id}).")
    return notes


def _verdict(within_bound: Sequence[bool | None]) -> str:
    broken = sum(held is False for held in within_bound)
    if broken:
        return f"**{broken} out of bound**"
    return "held" if any(within_bound) else _MISSING


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}x" if value is not None and base else _MISSING


def _number(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)
