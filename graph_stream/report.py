"""Reports of runs: one folder with the latency table, the rows it was read off, and the pictures.

The same rows give the same files, byte for byte. `results/README.md` says what the folder holds.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from graph_stream import plot_style, plots
from graph_stream.plot_style import MatplotlibMissing
from graph_stream.report_rows import (
    BATCH_SCHEMA,
    EPOCH_SCHEMA,
    CheckpointMode,
    RunReport,
    edges_per_second,
    latency_summary,
)
from graph_stream.report_tables import (
    MODE_LABELS,
    batch_table,
    environment_table,
    percentile_table,
    run_labels,
)

__all__ = [
    "BATCH_SCHEMA",
    "DEFAULT_TITLE",
    "EPOCH_SCHEMA",
    "MODE_LABELS",
    "CheckpointMode",
    "MatplotlibMissing",
    "RunReport",
    "edges_per_second",
    "latency_summary",
    "percentile_table",
    "write_report",
]

DEFAULT_TITLE = "Streaming influence"

_FILES = (
    "table.md",
    "epochs.parquet",
    "batches.parquet",
    *(f"{name}.{suffix}" for name in plots.PICTURES for suffix in plot_style.FORMATS),
    "environment.json",
)


def write_report(
    runs: Sequence[RunReport],
    out: Path,
    warmup: int = 0,
    labels: Mapping[str, str] | None = None,
    title: str = DEFAULT_TITLE,
) -> list[Path]:
    """Write the report of some runs into a folder: table, rows, pictures, environment.

    Everything is made in a scratch folder first and then moved to its final name, file by file: a failure
    before the moves leaves an earlier report as it was, and no file is ever seen half written. Pictures of an
    earlier report that this one does not have are removed; files of other names are left alone.

    Parameters
    ----------
    runs : sequence of RunReport
        The runs, in the order of tables and legends.
    out : pathlib.Path
        The folder; made where it is missing.
    warmup : int
        Epochs up to this one are left out of latency tables, CDF and mean phases; the Parquet files hold all
        rows.
    labels : mapping of str to str, optional
        Label by run id. Default: NoCkpt, AsyncCkpt or SyncCkpt after the mode, followed by the run id where
        several runs share a mode.
    title : str
        Headline of the table, repeated at the foot of each picture.

    Returns
    -------
    list of pathlib.Path
        The files written.

    Raises
    ------
    MatplotlibMissing
        The extra `report` is not installed; nothing is written.
    NotADirectoryError
        `out` is a file.
    ValueError
        A run is there twice, two runs have one label, or a label is for a run that is not there.
    """
    names = run_labels(runs, labels)
    plot_style.require_matplotlib()
    if out.exists() and not out.is_dir():
        message = f"{out} is a file; a report needs a folder to write into, so choose another path"
        raise NotADirectoryError(message)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=out) as folder:
        scratch = Path(folder)
        (scratch / "table.md").write_text(_document(runs, names, warmup, title), encoding="utf-8")
        (scratch / "environment.json").write_text(_environments(runs), encoding="utf-8")
        _write_rows((run.epochs for run in runs), EPOCH_SCHEMA, scratch / "epochs.parquet")
        _write_rows((run.batches for run in runs), BATCH_SCHEMA, scratch / "batches.parquet")
        series = [plots.Series(names[run.run_id], run, warmup) for run in runs]
        for name, figure in plots.draw(series, title):
            plot_style.save(figure, scratch / name)
        return _move_into_place(scratch, out)


def _move_into_place(scratch: Path, out: Path) -> list[Path]:
    made = [name for name in _FILES if (scratch / name).exists()]
    for name in made:
        os.replace(scratch / name, out / name)
    for name in set(_FILES).difference(made):
        (out / name).unlink(missing_ok=True)
    return [out / name for name in made]


def _document(runs: Sequence[RunReport], names: Mapping[str, str], warmup: int, title: str) -> str:
    sections = [f"# {title}", percentile_table(runs, warmup, names)]
    if any(run.batches.num_rows for run in runs):
        sections += ["## Offline batches and audits (warm-up included)", batch_table(runs, names)]
    if any(run.environment for run in runs):
        sections += ["## Environment", environment_table(runs, names)]
    return "\n\n".join(sections) + "\n"


def _environments(runs: Sequence[RunReport]) -> str:
    environments = {run.run_id: dict(run.environment) for run in runs}
    return json.dumps(environments, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _write_rows(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    pq.write_table(pa.concat_tables([schema.empty_table(), *tables]), path, compression="zstd")
