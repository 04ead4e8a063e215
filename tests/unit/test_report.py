"""Reports: percentiles against their definition, table content, written rows, pictures, atomic writing."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_stream import plot_style, plots
from graph_stream.report import (
    BATCH_SCHEMA,
    EPOCH_SCHEMA,
    MODE_LABELS,
    MatplotlibMissing,
    RunReport,
    edges_per_second,
    latency_summary,
    percentile_table,
    write_report,
)

RESULTS_README = Path(__file__).parents[2] / "results" / "README.md"
ENVIRONMENT = {"python": "3.11.2", "ray": "2.60.0", "cpu": "two cores", "cores": "2"}
ALWAYS = {
    "table.md",
    "epochs.parquet",
    "batches.parquet",
    "environment.json",
    *(f"{name}.{suffix}" for name in ("cdf", "timeline", "phases") for suffix in ("png", "pdf")),
}
WITH_AUDITS = ALWAYS | {f"{name}.{suffix}" for name in ("drift", "batches") for suffix in ("png", "pdf")}


def epoch_table(
    latencies_ms: Sequence[float],
    run_id: str = "demo",
    checkpoint: str = "async",
    commit_ms: float | None = 5.0,
) -> pa.Table:
    """Return one row per latency; epochs close every half second and hold 1,000 records."""
    rows = [
        {
            "run_id": run_id,
            "checkpoint": checkpoint,
            "epoch": epoch,
            "scheduled_time": 1000.0 + epoch / 2,
            "read_ms": 400.0,
            "wait_ms": latency_ms / 4,
            "online_ms": latency_ms / 2,
            "publish_ms": latency_ms / 4,
            "latency_ms": latency_ms,
            "commit_latency_ms": None if commit_ms is None else latency_ms + commit_ms,
            "records": 1000,
            "rejected": 0,
            "inserted": 900,
            "deleted": 50,
            "unchanged": 50,
            "vertices": 500,
            "edges": 850 * epoch,
            "rounds": 3,
            "emissions": 40,
            "bytes": None if commit_ms is None else 2000,
            "error_bound": 8e-4,
            "state_hash": f"{epoch:016x}",
            "versions": "{}",
        }
        for epoch, latency_ms in enumerate(latencies_ms, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=EPOCH_SCHEMA)


def batch_table(drifts: Sequence[float | None], run_id: str = "demo", bound: float = 1e-3) -> pa.Table:
    """Return one batch per drift at epochs 2, 4, 6 ...; None stands for a batch nobody audited."""
    rows = [
        {
            "run_id": run_id,
            "epoch": 2 * number,
            "seconds": 1.5 * number,
            "vertices": 500,
            "edges": 1700,
            "iterations": 9,
            "max_relative_drift": drift,
            "mean_relative_drift": None if drift is None else drift / 10,
            "error_bound": None if drift is None else bound,
            "within_bound": None if drift is None else drift <= bound,
        }
        for number, drift in enumerate(drifts, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=BATCH_SCHEMA)


def make_run(
    latencies_ms: Sequence[float],
    checkpoint: Any = "async",
    run_id: str = "demo",
    drifts: Sequence[float | None] = (),
) -> RunReport:
    commit_ms = None if checkpoint == "none" else 5.0
    return RunReport(
        run_id=run_id,
        checkpoint=checkpoint,
        epochs=epoch_table(latencies_ms, run_id, checkpoint, commit_ms),
        batches=batch_table(drifts, run_id),
        environment=ENVIRONMENT,
    )


def three_runs(epochs: int = 12, drifts: Sequence[float | None] = (2e-4, 3e-4)) -> list[RunReport]:
    """Return a run per mode; sync is twice as slow as none, async a tenth slower."""
    slowness = {"none": 1.0, "async": 1.1, "sync": 2.0}
    return [
        make_run([factor * (20 + epoch) for epoch in range(epochs)], mode, f"run-{mode}", drifts)
        for mode, factor in slowness.items()
    ]


def cells(markdown: str, heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table behind a heading, by column name."""
    lines = dropwhile(lambda line: not line.startswith("|"), markdown.split(heading, 1)[1].splitlines())
    table = takewhile(lambda line: line.startswith("|"), lines)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


LATENCY = "## Latency (ms): scheduled close of an epoch to its answer published"
COMMIT = "## Commit latency (ms): scheduled close of an epoch to its commit"
BATCHES = "## Offline batches and audits (warm-up included)"


class TestLatencySummary:
    QUANTILES = {  # noqa: RUF012
        "p50": Fraction(1, 2),
        "p90": Fraction(9, 10),
        "p99": Fraction(99, 100),
        "p999": Fraction(999, 1000),
        "max": Fraction(1),
    }

    @given(st.lists(st.integers(0, 40).map(float), min_size=1, max_size=60))
    def test_is_the_smallest_value_with_at_least_the_share_at_or_below_it(self, latencies_ms: list[float]) -> None:
        def by_definition(share: Fraction) -> float:
            reached = (
                candidate
                for candidate in latencies_ms
                if Fraction(sum(value <= candidate for value in latencies_ms), len(latencies_ms)) >= share
            )
            return min(reached)

        expected = {name: by_definition(share) for name, share in self.QUANTILES.items()}
        assert latency_summary(latency_only(latencies_ms)) == expected

    @pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 99, 100, 101, 999, 1000, 1001, 2000, 3000])
    def test_picks_the_exact_rank_where_the_share_is_whole(self, count: int) -> None:
        ranks = latency_only([float(rank) for rank in range(count, 0, -1)])
        expected = {name: float(math.ceil(share * count)) for name, share in self.QUANTILES.items()}
        assert latency_summary(ranks) == expected

    def test_leaves_out_the_warmup_and_nulls(self) -> None:
        table = latency_only([900.0, 800.0, 30.0, None, 10.0])
        assert latency_summary(table, warmup=2)["max"] == 30.0
        assert latency_summary(table, warmup=2)["p50"] == 10.0
        assert latency_summary(table, warmup=3)["max"] == 10.0

    def test_reads_the_column_asked_for(self) -> None:
        assert latency_summary(epoch_table([10.0, 20.0]), "commit_latency_ms")["max"] == 25.0

    @pytest.mark.parametrize(("latencies_ms", "warmup"), [([], 0), ([5.0, 6.0], 2), ([5.0], 100), ([None], 0)])
    def test_is_none_where_nothing_counts_and_json_in_any_case(
        self, latencies_ms: list[float | None], warmup: int
    ) -> None:
        summary = latency_summary(latency_only(latencies_ms), warmup=warmup)
        assert json.loads(json.dumps(summary)) == dict.fromkeys(["p50", "p90", "p99", "p999", "max"])


def latency_only(latencies_ms: Sequence[float | None]) -> pa.Table:
    epochs = pa.array(range(1, len(latencies_ms) + 1), pa.int64())
    return pa.table({"epoch": epochs, "latency_ms": pa.array(latencies_ms, pa.float64())})


class TestThroughput:
    def test_counts_records_behind_the_first_epoch_until_the_last_publish(self) -> None:
        # Epochs close at 1000.5, 1001.0, 1001.5 s; the last answer comes 0.5 s later: 2,000 records in 1.5 s.
        assert edges_per_second(epoch_table([100.0, 100.0, 500.0])) == pytest.approx(2000 / 1.5)

    def test_leaves_out_the_warmup(self) -> None:
        assert edges_per_second(epoch_table([9e5, 100.0, 500.0]), warmup=1) == pytest.approx(1000 / 1.0)

    @pytest.mark.parametrize(("epochs", "warmup"), [(0, 0), (1, 0), (5, 4), (5, 50)])
    def test_needs_two_measured_epochs(self, epochs: int, warmup: int) -> None:
        assert edges_per_second(epoch_table([10.0] * epochs), warmup) is None


class TestRunReport:
    def test_puts_rows_in_schema_order_and_sorts_them_by_epoch(self) -> None:
        table = epoch_table([30.0, 10.0, 20.0])
        shuffled = table.select(sorted(table.schema.names)).take([2, 0, 1])
        run = RunReport("demo", "async", shuffled, batch_table([]), {})
        assert run.epochs.equals(table)
        assert run.epochs.schema.equals(EPOCH_SCHEMA)

    @pytest.mark.parametrize(
        ("spoil", "complaint"),
        [
            (lambda t: t.drop_columns(["rounds"]), r"run 'demo', epoch rows .*: rounds is missing"),
            (lambda t: t.append_column("extra", t["epoch"]), r"extra is not a column of the schema"),
            (lambda t: with_column(t, "bytes", pa.array([1.0, 2.0])), r"bytes is double, expected int64"),
            (lambda t: with_column(t, "rounds", pa.array([1, None])), r"rounds has 1 nulls"),
            (
                lambda t: with_column(t, "run_id", pa.array(["demo", "other"])),
                r"run_id holds 'other', expected 'demo'",
            ),
            (
                lambda t: with_column(t, "checkpoint", pa.array(["sync"] * 2)),
                r"checkpoint holds 'sync', expected 'async'",
            ),
            (
                lambda t: with_column(t, "epoch", pa.array([7, 7])),
                r"run 'demo', epoch rows: epoch 7 has more than one row",
            ),
        ],
    )
    def test_refuses_epoch_rows_that_are_not_its_own(self, spoil: Any, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            RunReport("demo", "async", spoil(epoch_table([1.0, 2.0])), batch_table([]), {})

    def test_refuses_batch_rows_of_another_run(self) -> None:
        with pytest.raises(ValueError, match=r"run 'demo', batch rows .*run_id holds 'other', expected 'demo'"):
            RunReport("demo", "async", epoch_table([1.0]), batch_table([1e-4], "other"), {})

    def test_refuses_an_unknown_mode(self) -> None:
        with pytest.raises(ValueError, match=r"run 'demo': checkpoint is 'hybrid', not one of none, async, sync"):
            make_run([1.0], "hybrid")


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


class TestPercentileTable:
    def test_holds_a_row_per_run_with_its_percentiles_and_ratios(self) -> None:
        rows = cells(percentile_table(three_runs(), warmup=2), LATENCY)
        assert [row["label"] for row in rows] == ["NoCkpt", "AsyncCkpt", "SyncCkpt"]
        assert [row["run"] for row in rows] == ["run-none", "run-async", "run-sync"]
        assert [row["checkpoint"] for row in rows] == ["none", "async", "sync"]
        # Ten measured epochs of 22 to 31 ms: the 5th, the 9th and the last.
        assert {rows[0][name] for name in ("p99", "p99.9", "max")} == {"31.00"}
        assert (rows[0]["epochs"], rows[0]["p50"], rows[0]["p90"]) == ("10", "26.00", "30.00")
        assert [row["p50 ratio"] for row in rows] == ["1.00x", "1.10x", "2.00x"]
        assert [row["p99 ratio"] for row in rows] == ["1.00x", "1.10x", "2.00x"]

    def test_holds_throughput(self) -> None:
        run = make_run([100.0, 100.0, 500.0])
        assert cells(percentile_table([run]), LATENCY)[0]["edges/s"] == "1,333"

    def test_holds_commit_latency_of_the_runs_that_commit(self) -> None:
        none, _, sync = cells(percentile_table(three_runs(), warmup=2), COMMIT)
        assert (none["commits"], none["bytes/epoch"], none["p50"], none["max"]) == ("0", "–", "–", "–")
        assert (sync["commits"], sync["bytes/epoch"], sync["p50"], sync["max"]) == (
            "10",
            "2,000",
            "57.00",
            "67.00",
        )

    def test_has_no_ratios_without_a_run_that_has_no_checkpoints(self) -> None:
        text = percentile_table(three_runs()[1:])
        assert "ratio" not in text.lower()

    def test_says_what_the_warmup_leaves_out(self) -> None:
        assert "Epochs 1 to 150 are warm-up and left out." in percentile_table(three_runs(), warmup=150)
        assert "No warm-up: every epoch counts." in percentile_table(three_runs())

    def test_says_why_nothing_was_measured(self) -> None:
        runs = [make_run([], "none", "idle"), make_run([10.0] * 12, "sync", "brief")]
        text = percentile_table(runs, warmup=12)
        assert "NoCkpt: nothing measured, the run has no epochs." in text
        assert "SyncCkpt: nothing measured, its 12 epochs end within the warm-up." in text
        assert [row["p50"] for row in cells(text, LATENCY)] == ["–", "–"]

    def test_tells_runs_of_one_mode_apart_by_their_run_id(self) -> None:
        runs = [
            make_run([10.0], "sync", "first"),
            make_run([10.0], "sync", "second"),
            make_run([10.0], "none", "third"),
        ]
        labels = [row["label"] for row in cells(percentile_table(runs), LATENCY)]
        assert labels == ["SyncCkpt first", "SyncCkpt second", "NoCkpt"]

    def test_takes_labels_and_keeps_the_table_whole(self) -> None:
        rows = cells(percentile_table(three_runs(), labels={"run-sync": "fsync | yes"}), LATENCY)
        assert [row["label"] for row in rows] == ["NoCkpt", "AsyncCkpt", r"fsync \| yes"]

    @pytest.mark.parametrize(
        ("labels", "complaint"),
        [
            ({"nobody": "A"}, r"label 'A' is for run 'nobody', which is not in the report"),
            ({"run-none": "A", "run-sync": "A"}, r"label 'A' names 2 runs"),
            ({"run-none": "SyncCkpt"}, r"label 'SyncCkpt' names 2 runs"),
        ],
    )
    def test_refuses_labels_that_name_no_run_or_two(self, labels: dict[str, str], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            percentile_table(three_runs(), labels=labels)

    def test_refuses_a_run_named_twice(self) -> None:
        with pytest.raises(ValueError, match=r"run 'demo' is in the report twice"):
            percentile_table([make_run([1.0], "sync"), make_run([1.0], "none")])

    def test_is_aligned_for_those_who_read_it_raw(self) -> None:
        lines = [line for line in percentile_table(three_runs()).splitlines() if line.startswith("|")]
        widths = [len(line) for line in lines]
        assert len(lines) == 10
        assert len(set(widths[:5])) == len(set(widths[5:])) == 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report of three runs of twelve epochs, the first four of them warm-up."""
    out = tmp_path_factory.mktemp("report") / "fig7c"
    paths = write_report(three_runs(), out, warmup=4, title="Made-up stream")
    assert {path.name for path in paths} == WITH_AUDITS
    assert all(path.parent == out for path in paths)
    return out


class TestWrittenFiles:
    def test_there_is_nothing_else(self, written: Path) -> None:
        assert {path.name for path in written.iterdir()} == WITH_AUDITS

    @pytest.mark.parametrize(("name", "schema"), [("epochs", EPOCH_SCHEMA), ("batches", BATCH_SCHEMA)])
    def test_parquet_holds_every_row_of_every_run(self, written: Path, name: str, schema: pa.Schema) -> None:
        table = pq.read_table(written / f"{name}.parquet")
        assert table.schema.equals(schema)
        assert table.equals(pa.concat_tables([getattr(run, name) for run in three_runs()]))

    def test_table_holds_title_percentiles_audits_and_environment(self, written: Path) -> None:
        text = (written / "table.md").read_text(encoding="utf-8")
        assert text.startswith("# Made-up stream\n")
        assert percentile_table(three_runs(), warmup=4) in text
        audits = cells(text, BATCHES)
        assert [row["audit"] for row in audits] == ["held"] * 3
        assert (audits[0]["batches"], audits[0]["audited"]) == ("2", "2")
        assert (audits[0]["median s"], audits[0]["max s"]) == ("2.25", "3.00")
        assert (audits[0]["largest drift"], audits[0]["bound there"]) == ("3.00e-04", "1.00e-03")
        assert cells(text, "## Environment")[0] == {"": "cores", "every run": "2"}

    def test_environment_is_json_by_run(self, written: Path) -> None:
        environment = json.loads((written / "environment.json").read_text(encoding="utf-8"))
        assert environment == {f"run-{mode}": ENVIRONMENT for mode in MODE_LABELS}

    @pytest.mark.parametrize("name", plots.PICTURES)
    def test_png_shows_something(self, written: Path, name: str) -> None:
        from matplotlib.image import imread

        pixels = imread(written / f"{name}.png")
        assert pixels.shape[0] >= 600
        assert pixels.shape[1] == 1440
        inked = (pixels[..., :3] < 0.95).any(axis=2)
        # Ink in every quarter of the page, and most of it still paper.
        quarters = [half for side in np.array_split(inked, 2, axis=0) for half in np.array_split(side, 2, axis=1)]
        assert min(quarter.mean() for quarter in quarters) > 0.003
        assert inked.mean() < 0.6

    @pytest.mark.parametrize("name", ["cdf", "timeline", "drift"])
    def test_png_shows_each_mode_in_its_colour(self, written: Path, name: str) -> None:
        from matplotlib.colors import to_rgb
        from matplotlib.image import imread

        pixels = imread(written / f"{name}.png")[..., :3]
        for mode, color in plot_style.MODE_COLORS.items():
            assert np.isclose(pixels, to_rgb(color), atol=0.01).all(axis=2).sum() > 50, mode

    @pytest.mark.parametrize("name", plots.PICTURES)
    def test_pdf_is_one_page_with_lines_on_it(self, written: Path, name: str) -> None:
        document = (written / f"{name}.pdf").read_bytes()
        assert document.startswith(b"%PDF-1.")
        assert document.rstrip().endswith(b"%%EOF")
        assert document.count(b"/Type /Page\n") + document.count(b"/Type /Page ") == 1
        assert b"/Subtype /Type3" not in document
        streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", document, re.DOTALL)
        drawn = b"\n".join(inflate(stream) for stream in streams)
        assert drawn.count(b" l\n") > 10
        assert drawn.count(b"\nS\n") + drawn.count(b"\nB\n") + drawn.count(b"\nf\n") > 5

    def test_the_same_rows_give_the_same_bytes(self, written: Path, tmp_path: Path) -> None:
        again = write_report(three_runs(), tmp_path, warmup=4, title="Made-up stream")
        assert {path.name: path.read_bytes() for path in again} == folder_bytes(written)


def inflate(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return stream


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def draw(runs: Sequence[RunReport], warmup: int = 0) -> dict[str, Any]:
    labels = [f"{run.checkpoint} {run.run_id}" for run in runs]
    series = [plots.Series(label, run, warmup) for label, run in zip(labels, runs, strict=True)]
    return dict(plots.draw(series, "title"))


def texts(figure: Any) -> set[str]:
    from matplotlib.text import Text

    return {text.get_text() for text in figure.findobj(Text)}


class TestPictures:
    @settings(max_examples=10, deadline=None)
    @given(st.lists(st.floats(0, 1e4, allow_subnormal=False), min_size=3, max_size=30), st.integers(0, 4))
    def test_cdf_reaches_each_percentile_where_the_table_says(self, latencies_ms: list[float], warmup: int) -> None:
        run = make_run(latencies_ms)
        summary = latency_summary(run.epochs, warmup=warmup)
        (axes,) = draw([run], warmup)["cdf"].axes
        if summary["max"] is None:
            assert "no epochs measured" in texts(axes.figure)
            return
        line = axes.lines[0]
        latency_ms, share = line.get_xdata(), line.get_ydata()
        assert line.get_drawstyle() == "steps-post"
        assert share[0] == 0
        assert share[-1] == 1
        for name, level in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            assert latency_ms[np.argmax(share >= level - 1e-12)] == summary[name]

    def test_cdf_is_linear_until_the_tail_would_hide_the_body(self) -> None:
        (linear,) = draw([make_run([10.0, 11.0, 12.0, 90.0])])["cdf"].axes
        (logarithmic,) = draw([make_run([10.0, 11.0, 12.0, 900.0])])["cdf"].axes
        assert (linear.get_xscale(), linear.get_xlim()[0]) == ("linear", 0)
        assert logarithmic.get_xscale() == "log"
        assert "log scale" in logarithmic.get_xlabel()

    def test_colour_means_the_mode_and_dashes_tell_runs_of_a_mode_apart(self) -> None:
        runs = [make_run([10.0, 20.0], mode, f"{mode}{n}") for mode in MODE_LABELS for n in (1, 2)]
        figures = draw(runs)
        for name in ("cdf", "timeline"):
            lines = figures[name].axes[0].lines[:6]
            assert [line.get_color() for line in lines] == [plot_style.MODE_COLORS[run.checkpoint] for run in runs]
            assert [line.get_linestyle() for line in lines] == ["-", "--"] * 3

    def test_timeline_shows_every_epoch_and_shades_the_warmup(self) -> None:
        figure = draw([make_run([40.0, 30.0, 20.0, 10.0], drifts=[None])], warmup=2)["timeline"]
        line = figure.axes[0].lines[0]
        assert list(line.get_xdata()) == [1, 2, 3, 4]
        assert list(line.get_ydata()) == [40, 30, 20, 10]
        assert {"warm-up", "offline batch"} <= texts(figure)

    def test_timeline_of_a_long_run_shows_epochs_and_their_rolling_median(self) -> None:
        latencies_ms = [10.0] * 100
        latencies_ms[50] = 99.0
        figure = draw([make_run(latencies_ms)])["timeline"]
        every, median = figure.axes[0].lines[:2]
        assert max(every.get_ydata()) == 99
        assert max(median.get_ydata()) == 10
        assert "median of 5 epochs" in figure.axes[0].get_ylabel()

    def test_drift_stands_below_the_certificate_and_runs_side_by_side(self) -> None:
        (axes,) = draw(three_runs(drifts=[2e-4, None, 3e-4]))["drift"].axes
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        certificates = [line for line in axes.lines if line.get_label() == "certificate"]
        assert axes.get_yscale() == "log"
        assert [list(line.get_ydata()) for line in dots] == [[2e-4, 3e-4]] * 3
        assert [set(line.get_ydata()) for line in certificates] == [{1e-3}] * 3
        positions = np.array([line.get_xdata() for line in dots])
        assert np.allclose(positions, [[2, 6]] * 3, atol=0.5)
        assert (np.diff(positions, axis=0) > 0).all()

    def test_drift_out_of_bound_is_marked_and_zero_drift_is_drawn(self) -> None:
        figure = draw([make_run([1.0] * 6, drifts=[0.0, 2e-3, 5e-4])])["drift"]
        (dots,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
        (cross,) = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
        assert list(cross.get_xdata()) == [4]
        assert "out of bound" in texts(figure)
        assert 0 < dots.get_ydata()[0] < 5e-5

    def test_phases_are_the_means_behind_the_warmup(self) -> None:
        run = make_run([8e5, 10.0, 30.0])
        figure = draw([run], warmup=1)["phases"]
        widths = [bar.get_width() for bar in figure.axes[0].patches]
        assert widths[1:] == pytest.approx([5.0, 10.0, 5.0])
        (commit,) = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
        assert list(commit.get_xdata()) == pytest.approx([25.0])
        assert "async demo: latency 20 ms" in texts(figure)

    def test_batches_are_drawn_against_their_epochs(self) -> None:
        (axes,) = draw([make_run([1.0], drifts=[None, 1e-4])])["batches"].axes
        assert list(axes.lines[0].get_xdata()) == [2, 4]
        assert list(axes.lines[0].get_ydata()) == [1.5, 3.0]
        assert axes.get_ylim()[0] == 0

    def test_legends_stand_outside_the_axes_and_within_the_page(self, tmp_path: Path) -> None:
        runs = [
            make_run([10.0, 20.0], mode, f"a-long-run-id-{mode}-{n}", [1e-4]) for mode in MODE_LABELS for n in (1, 2, 3)
        ]
        for name, figure in draw(runs).items():
            plot_style.save(figure, tmp_path / name)
            (axes,) = figure.axes
            box = axes.get_legend().get_window_extent()
            assert box.y0 >= axes.get_window_extent().y1
            assert box.x1 <= figure.bbox.x1
            assert axes.get_window_extent().height > 0.65 * figure.get_dpi() * 4.2

    def test_labels_are_shown_as_they_are_written(self) -> None:
        series = [
            plots.Series(label, make_run([1.0, 2.0], run_id=label), 0)
            for label in ("_hidden", r"$\no^such_command$", "a & b %")
        ]
        figures = dict(plots.draw(series, "cost in $, 100 %"))
        for figure in figures.values():
            figure.canvas.draw()
        assert {"_hidden", r"$\no^such_command$", "a & b %"} <= texts(figures["cdf"])
        assert any(text.startswith("cost in $, 100 %") for text in texts(figures["cdf"]))

    def test_drawing_leaves_the_global_style_alone_and_pyplot_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import matplotlib

        monkeypatch.setitem(matplotlib.rcParams, "font.size", 17.0)
        before = dict(matplotlib.rcParams)
        pyplot_was_there = "matplotlib.pyplot" in sys.modules
        draw(three_runs())
        assert dict(matplotlib.rcParams) == before
        assert ("matplotlib.pyplot" in sys.modules) == pyplot_was_there


class TestOddRuns:
    """A report of little or nothing is a report that says so; a warning would fail these tests."""

    @pytest.mark.parametrize(
        ("runs", "warmup", "files"),
        [
            pytest.param([], 0, ALWAYS, id="no runs"),
            pytest.param([make_run([])], 0, ALWAYS, id="no epochs"),
            pytest.param(
                [make_run([]), make_run([5.0] * 9, "sync", "other")],
                3,
                ALWAYS,
                id="one of two without epochs",
            ),
            pytest.param([make_run([7.0])], 0, ALWAYS, id="one epoch"),
            pytest.param([make_run([0.0, 0.0])], 0, ALWAYS, id="no latency at all"),
            pytest.param(three_runs(), 99, WITH_AUDITS, id="shorter than the warm-up"),
            pytest.param([make_run([5.0, 6.0], drifts=[0.0])], 0, WITH_AUDITS, id="one audit without any drift"),
            pytest.param(
                [make_run([5.0, 6.0], drifts=[None])],
                0,
                ALWAYS | {"batches.png", "batches.pdf"},
                id="batches without audits",
            ),
        ],
    )
    def test_are_reported(self, tmp_path: Path, runs: list[RunReport], warmup: int, files: set[str]) -> None:
        paths = write_report(runs, tmp_path, warmup)
        assert {path.name for path in paths} == files == set(folder_bytes(tmp_path))
        assert pq.read_table(tmp_path / "epochs.parquet").num_rows == sum(run.epochs.num_rows for run in runs)
        assert pq.read_table(tmp_path / "batches.parquet").schema.equals(BATCH_SCHEMA)

    def test_out_of_bound_audits_stand_out_in_the_table(self, tmp_path: Path) -> None:
        write_report([make_run([5.0] * 8, drifts=[1e-4, 2e-3, None])], tmp_path)
        (row,) = cells((tmp_path / "table.md").read_text(encoding="utf-8"), BATCHES)
        assert row["audit"] == "**1 out of bound**"
        assert (row["batches"], row["audited"], row["largest drift"]) == ("3", "2", "2.00e-03")

    def test_environments_that_differ_are_set_side_by_side(self, tmp_path: Path) -> None:
        first, second = make_run([5.0], "none", "a"), make_run([5.0], "sync", "b")
        write_report([first, replace(second, environment={"cores": "8"})], tmp_path)
        rows = cells((tmp_path / "table.md").read_text(encoding="utf-8"), "## Environment")
        assert rows[0] == {"": "cores", "NoCkpt": "2", "SyncCkpt": "8"}
        assert rows[1]["SyncCkpt"] == "–"


class TestAtomicity:
    @pytest.fixture
    def folder(self, written: Path, tmp_path: Path) -> Path:
        """Return a folder with an earlier report and a file of the user's."""
        folder = tmp_path / "report"
        shutil.copytree(written, folder)
        (folder / "notes.txt").write_text("mine", encoding="utf-8")
        return folder

    @pytest.mark.parametrize("failing_picture", ["cdf", "drift", "phases"])
    def test_a_failure_while_drawing_leaves_the_earlier_report(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, failing_picture: str
    ) -> None:
        before = folder_bytes(folder)
        save = plot_style.save

        def fail_halfway(figure: Any, stem: Path) -> list[Path]:
            if stem.name == failing_picture:
                stem.with_suffix(".png").write_bytes(b"\x89PNG half a picture")
                message = "no space left on device"
                raise OSError(message)
            return save(figure, stem)

        monkeypatch.setattr(plot_style, "save", fail_halfway)
        with pytest.raises(OSError, match="no space left"):
            write_report([make_run([5.0, 6.0], drifts=[1e-4])], folder)
        assert folder_bytes(folder) == before

    def test_a_failure_while_moving_leaves_only_whole_files(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = [make_run([5.0, 6.0], drifts=[1e-4])]
        write_report(runs, tmp_path / "whole")
        before, after = folder_bytes(folder), folder_bytes(tmp_path / "whole")
        moves = iter(range(5))
        replace_file = os.replace

        def fail_at_the_sixth(source: Path, target: Path) -> None:
            if next(moves, None) is None:
                message = "no space left on device"
                raise OSError(message)
            replace_file(source, target)

        monkeypatch.setattr(os, "replace", fail_at_the_sixth)
        with pytest.raises(OSError, match="no space left"):
            write_report(runs, folder)
        found = folder_bytes(folder)
        assert set(found) == set(before)
        changed = {name for name, content in found.items() if content != before[name]}
        assert len(changed) == 5
        assert all(found[name] == after[name] for name in changed)

    def test_pictures_of_an_earlier_report_do_not_stay_behind(self, folder: Path) -> None:
        write_report([make_run([5.0, 6.0])], folder)
        assert set(folder_bytes(folder)) == ALWAYS | {"notes.txt"}
        assert (folder / "notes.txt").read_text(encoding="utf-8") == "mine"

    def test_a_file_in_place_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        out = tmp_path / "report"
        out.write_text("mine", encoding="utf-8")
        with pytest.raises(NotADirectoryError, match=r"report is a file; a report needs a folder"):
            write_report([make_run([5.0])], out)
        assert out.read_text(encoding="utf-8") == "mine"


class TestWithoutMatplotlib:
    @pytest.fixture(autouse=True)
    def _absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)

    def test_a_report_names_the_install_command_and_writes_nothing(self, tmp_path: Path) -> None:
        out = tmp_path / "report"
        with pytest.raises(MatplotlibMissing, match=re.escape("pip install 'exoflow[report]'")):
            write_report(three_runs(), out)
        assert not out.exists()

    def test_a_picture_names_the_install_command(self) -> None:
        with pytest.raises(MatplotlibMissing, match=re.escape("pip install 'exoflow[report]'")):
            draw(three_runs())

    def test_tables_do_without(self) -> None:
        assert "SyncCkpt" in percentile_table(three_runs())


class TestReadme:
    @pytest.mark.parametrize(("file", "schema"), [("epochs.parquet", EPOCH_SCHEMA), ("batches.parquet", BATCH_SCHEMA)])
    def test_describes_every_column_in_order(self, file: str, schema: pa.Schema) -> None:
        rows = cells(RESULTS_README.read_text(encoding="utf-8"), f"## `{file}`")
        described = [(row["column"].strip("`"), row["type"]) for row in rows]
        assert described == [(f.name, f"{f.type}, nullable" if f.nullable else f"{f.type}") for f in schema]
        assert all(row["unit"] and row["meaning"] for row in rows)


def test_rows_can_be_filtered_by_the_warmup_in_the_written_file(written: Path) -> None:
    """The Parquet rows are enough to compute the table again."""
    table = pq.read_table(written / "epochs.parquet", filters=pc.field("run_id") == "run-sync")
    row = cells((written / "table.md").read_text(encoding="utf-8"), LATENCY)[2]
    assert f"{latency_summary(table, warmup=4)['p90']:.2f}" == row["p90"]


def test_importing_reports_does_not_import_matplotlib() -> None:
    code = "import sys, graph_stream.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
