"""The pictures of a report: functions from epoch and batch rows to figures.

Colour says the checkpoint mode in every picture; runs that share a mode differ by their dashes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from graph_stream import plot_style as style
from graph_stream.report_rows import RunReport, after_warmup, audited

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_FEW_EPOCHS = 60  # below this every epoch is drawn as a point, above it as a rolling median over a faint line


@dataclass(frozen=True)
class Series:
    """One run as the pictures show it.

    Parameters
    ----------
    label : str
        Its name in legends, unique in a report.
    run : RunReport
        Its rows.
    warmup : int
        Its last warm-up epoch (0: none).
    """

    label: str
    run: RunReport
    warmup: int

    @property
    def color(self) -> str:
        """The colour of the run's mode."""
        return style.MODE_COLORS[self.run.checkpoint]

    @property
    def measured(self) -> pa.Table:
        """The epoch rows after the warm-up."""
        return after_warmup(self.run.epochs, self.warmup)

    @property
    def audits(self) -> pa.Table:
        """The batch rows that were compared with the online answer."""
        return audited(self.run.batches)


@style.styled
def cdf(series: Sequence[Series], caption: str) -> "Figure":
    """Draw the cumulative distribution of online latency, one step line per run, warm-up left out.

    A line's height at x is the share of epochs answered within x milliseconds: a percentile of the table is
    the x at which the line reaches it. This is the form of figure 7c of the ExoFlow paper (OSDI'23).
    """
    figure, axes = style.canvas("CDF of online latency", caption)
    entries: dict[str, Artist] = {}
    for one, dashes in zip(series, _dashes(series), strict=True):
        steps = np.sort(_column(one.measured, "latency_ms"))
        (entries[one.label],) = axes.plot(
            np.concatenate([steps[:1], steps]),
            np.arange(steps.size + 1) / steps.size if steps.size else [],
            drawstyle="steps-post",
            color=one.color,
            linestyle=dashes,
            linewidth=1.8,
            marker="o",
            markersize=4,
            markevery=[-1] if steps.size else None,
        )
    everything = _pooled(series, lambda one: _column(one.measured, "latency_ms"))
    scale = ""
    if everything.size:
        scale = style.scale_milliseconds(axes, "x", everything)
        axes.set_ylim(0, 1.02)
        axes.set_yticks(np.arange(0, 1.01, 0.2))
        style.mark_shares(axes, ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")))
        style.legend(axes, entries)
    else:
        style.say_empty(axes, "no epochs measured")
    axes.set_xlabel(f"latency from scheduled close to answer published (ms{scale})")
    axes.set_ylabel("fraction of epochs")
    return figure


@style.styled
def timeline(series: Sequence[Series], caption: str) -> "Figure":
    """Draw online latency over the epochs, with the warm-up shaded and the epochs of offline batches marked.

    Long runs show every epoch as a faint line and a rolling median on top.
    """
    figure, axes = style.canvas("Online latency over the run", caption)
    entries: dict[str, Artist] = {}
    longest = max((one.run.epochs.num_rows for one in series), default=0)
    window = 1 if longest < _FEW_EPOCHS else 2 * (longest // 50) + 1
    for one, dashes in zip(series, _dashes(series), strict=True):
        epoch, latency_ms = _column(one.run.epochs, "epoch"), _column(one.run.epochs, "latency_ms")
        if window > 1:
            axes.plot(epoch, latency_ms, color=one.color, linewidth=0.8, alpha=0.4)
        (entries[one.label],) = axes.plot(
            epoch,
            _rolling_median(latency_ms, window),
            color=one.color,
            linestyle=dashes,
            linewidth=1.8,
            marker=None if window > 1 else "o",
            markersize=4,
        )
    everything = _pooled(series, lambda one: _column(one.run.epochs, "latency_ms"))
    scale = ""
    if everything.size:
        last_epoch = _pooled(series, lambda one: _column(one.run.epochs, "epoch")).max()
        axes.set_xlim(0.5, last_epoch + 0.5)
        scale = style.scale_milliseconds(axes, "y", everything)
        warmup = min(series[0].warmup, last_epoch)
        if warmup > 0:
            style.shade(axes, 0.5, warmup + 0.5, "warm-up")
        style.legend(axes, {**entries, **_batch_marks(axes, series)})
        style.whole_numbers(axes)
    else:
        style.say_empty(axes, "no epochs")
    axes.set_xlabel("epoch")
    median = f", median of {window} epochs" if window > 1 else ""
    axes.set_ylabel(f"latency (ms{scale}){median}")
    return figure


@style.styled
def drift(series: Sequence[Series], caption: str) -> "Figure":
    """Draw how far the online answer was from the exact one at each audit, against the proven bound.

    An audit is a bar from the mean to the largest relative error over the vertices, with a dot at the
    largest. Runs of one stream have one state and so one drift: their bars stand side by side. A drift of
    exactly zero, which a logarithmic axis cannot show, is drawn at its lower end.
    """
    from matplotlib.lines import Line2D

    figure, axes = style.canvas("Online answer against the exact one", caption)
    entries: dict[str, Artist] = {}
    floor = _log_floor(series)
    epochs = np.unique(_pooled(series, lambda one: _column(one.audits, "epoch")))
    offsets = _side_by_side(epochs, len(series))
    reach = max(0.06 * np.ptp(epochs), 1.0) + offsets[-1]
    out_of_bound = False
    for one, offset in zip(series, offsets, strict=True):
        epoch = _column(one.audits, "epoch")
        largest = np.maximum(_column(one.audits, "max_relative_drift"), floor)
        mean = np.fmax(_column(one.audits, "mean_relative_drift"), floor)
        bound = _column(one.audits, "error_bound")
        ends = [epoch[:1] - reach / 2, epoch, epoch[-1:] + reach / 2]
        axes.plot(
            np.concatenate(ends),
            np.concatenate([bound[:1], bound, bound[-1:]]),
            **_dashed(),
            label="certificate",
        )
        axes.vlines(epoch + offset, np.fmin(mean, largest), largest, color=one.color, linewidth=1.8)
        (entries[one.label],) = axes.plot(
            epoch + offset, largest, linestyle="none", marker="o", markersize=4.5, color=one.color
        )
        broken = np.array([held is False for held in one.audits["within_bound"].to_pylist()], dtype=np.bool_)
        axes.plot((epoch + offset)[broken], largest[broken], **_cross())
        out_of_bound = out_of_bound or bool(broken.any())
    entries["certificate (proven bound)"] = Line2D([], [], **_dashed())
    if out_of_bound:
        entries["out of bound"] = Line2D([], [], **_cross())
    style.legend(axes, entries)
    axes.set_xlim(epochs[0] - reach, epochs[-1] + reach)
    axes.set_yscale("log")
    # The drift of one run may stay within a decade, where only the minor ticks are left to read.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.0e}" if f"{value:.0e}"[0] in "25" else "")
    style.whole_numbers(axes)
    axes.set_xlabel("epoch of the audit")
    axes.set_ylabel("relative error, mean to largest (log scale)")
    return figure


@style.styled
def batches(series: Sequence[Series], caption: str) -> "Figure":
    """Draw how long each offline batch took, against the epoch it was taken at."""
    figure, axes = style.canvas("Duration of the offline batches", caption)
    entries: dict[str, Artist] = {}
    for one, dashes in zip(series, _dashes(series), strict=True):
        (entries[one.label],) = axes.plot(
            _column(one.run.batches, "epoch"),
            _column(one.run.batches, "seconds"),
            color=one.color,
            linestyle=dashes,
            linewidth=1.6,
            marker="o",
            markersize=4.5,
        )
    style.legend(axes, entries)
    axes.set_ylim(0, max(_pooled(series, lambda one: _column(one.run.batches, "seconds")).max() * 1.06, 1e-3))
    style.whole_numbers(axes)
    axes.set_xlabel("epoch of the batch")
    axes.set_ylabel("duration (s)")
    return figure


@style.styled
def phases(series: Sequence[Series], caption: str) -> "Figure":
    """Draw the mean time an epoch spends in each phase, one bar per run, and the mean moment of its commit.

    Zero is the scheduled close of the epoch: reading lies before it, the parts of the latency behind it. A
    paced source reads for as long as the epoch is open, so a long reading is cut off instead of squeezing the
    rest.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    figure, axes = style.canvas("Where an epoch's time goes", caption)
    if not any(one.measured.num_rows for one in series):
        style.say_empty(axes, "no epochs measured")
        return figure
    means = [{phase: _mean(one.measured, f"{phase}_ms") for phase in style.PHASE_COLORS} for one in series]
    commits = [_mean(one.measured, "commit_latency_ms") for one in series]
    widest = max([*(sum(mean.values()) - mean["read"] for mean in means), *commits, 0.0]) or 1.0
    for row, (one, mean, commit) in enumerate(zip(series, means, commits, strict=True)):
        if not one.measured.num_rows:
            axes.text(-0.2 * widest, row, f"{one.label}: no epochs measured", va="center", bbox=_paper())
            continue
        note = f"{one.label}: latency {_milliseconds(_mean(one.measured, 'latency_ms'))} ms"
        axes.text(-0.2 * widest, row - 0.28, note, va="bottom", bbox=_paper())
        _phase_bar(axes, row, mean, widest)
        if commit:
            axes.plot([commit], [row], **_diamond(), clip_on=False)
    entries: dict[str, Artist] = {phase: Patch(color=color) for phase, color in style.PHASE_COLORS.items()}
    if any(commits):
        entries["committed"] = Line2D([], [], **_diamond())
    style.legend(axes, entries)
    style.grow(axes, 0.5 * max(len(series) - 5, 0))
    axes.axvline(0, color=style.MUTED, linewidth=0.8)
    axes.set_xlim(-0.21 * widest, 1.06 * widest)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 1.06 * widest])
    axes.set_ylim(len(series) - 0.5, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("mean time after the scheduled close of the epoch (ms); reading comes before it")
    return figure


PICTURES: Mapping[str, Callable[[Sequence[Series], str], "Figure"]] = {
    "cdf": cdf,
    "timeline": timeline,
    "drift": drift,
    "batches": batches,
    "phases": phases,
}


def draw(series: Sequence[Series], title: str) -> Iterator[tuple[str, "Figure"]]:
    """Draw every picture the rows have something to say for.

    Parameters
    ----------
    series : sequence of Series
        The runs, in the order of the legends.
    title : str
        Title of the report, repeated at the foot of each picture.

    Yields
    ------
    tuple of str and matplotlib.figure.Figure
        Name and figure, in the order of `PICTURES`; `drift` only with audited batches, `batches` only with
        batches.

    Raises
    ------
    MatplotlibMissing
        matplotlib cannot be imported.
    """
    silent = set()
    if not any(one.audits.num_rows for one in series):
        silent.add("drift")
    if not any(one.run.batches.num_rows for one in series):
        silent.add("batches")
    for name, picture in PICTURES.items():
        if name not in silent:
            # Batches and audits are no latencies: the warm-up counts for them.
            yield name, picture(series, title if name in ("drift", "batches") else _caption(series, title))


def _caption(series: Sequence[Series], title: str) -> str:
    counts = sorted({one.measured.num_rows for one in series}) or [0]
    spread = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    warmup = max((one.warmup for one in series), default=0)
    left_out = f", epochs up to {warmup:,} left out as warm-up" if warmup > 0 else ""
    noun = "epoch" if counts == [1] else "epochs"
    return f"{title}  ·  {spread} {noun} measured per run{left_out}"


def _dashes(series: Sequence[Series]) -> list[Any]:
    """Return the dash pattern of each run: solid for the first of its mode, another for the next."""
    seen: Counter[str] = Counter()
    patterns = []
    for one in series:
        patterns.append(style.DASHES[seen[one.run.checkpoint] % len(style.DASHES)])
        seen[one.run.checkpoint] += 1
    return patterns


def _batch_marks(axes: "Axes", series: Sequence[Series]) -> dict[str, "Artist"]:
    """Mark the epochs of offline batches on the lower edge, so that their effect on latency can be seen."""
    epochs = np.unique(_pooled(series, lambda one: _column(one.run.batches, "epoch")))
    if not epochs.size:
        return {}
    (marks,) = axes.plot(
        epochs,
        np.zeros(epochs.size),
        transform=axes.get_xaxis_transform(),
        linestyle="none",
        marker="^",
        markersize=5,
        color=style.INK,
        clip_on=False,
        zorder=5,
    )
    return {"offline batch": marks}


def _phase_bar(axes: "Axes", row: int, mean: Mapping[str, float], widest: float) -> None:
    shown = {**mean, "read": min(mean["read"], 0.2 * widest)}
    left = -shown["read"]
    for phase, width in shown.items():
        color = style.PHASE_COLORS[phase]
        axes.barh(row, width, left=left, height=0.5, color=color, edgecolor="white", linewidth=0.8)
        if width > 0.08 * widest:
            cut = "‹ " if width < mean[phase] else ""
            text = cut + _milliseconds(mean[phase])
            axes.text(left + width / 2, row, text, ha="center", va="center", fontsize=8.5)
        left += width


def _diamond() -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": "D",
        "markersize": 6.5,
        "color": style.INK,
        "markeredgecolor": "white",
    }


def _cross() -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": "x",
        "markersize": 10,
        "markeredgewidth": 2.2,
        "color": style.ALARM,
    }


def _paper() -> dict[str, Any]:
    """Return a background that keeps lines from running through text."""
    return {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def _dashed() -> dict[str, Any]:
    return {"color": style.INK, "linewidth": 1.3, "dashes": (4, 2)}


def _side_by_side(epochs: "Floats", count: int) -> "Floats":
    """Return one small shift in epochs per run, so that audits of one epoch do not hide each other."""
    spacing = float(np.diff(epochs).min()) if epochs.size > 1 else 1.0
    step = min(0.6 * spacing / count, 0.014 * max(float(np.ptp(epochs)), 2.0))
    return step * (np.arange(count, dtype=np.float64) - (count - 1) / 2)


def _log_floor(series: Sequence[Series]) -> float:
    """Return what a drift of exactly zero is drawn as: well below everything that is not."""
    columns = ("max_relative_drift", "mean_relative_drift", "error_bound")
    values = np.concatenate([_column(one.audits, name) for one in series for name in columns])
    positive = values[values > 0]
    return float(positive.min()) / 10 if positive.size else 1e-12


def _rolling_median(values: "Floats", window: int) -> "Floats":
    """Return the median of the `window` values around each one; fewer at the ends."""
    reach = window // 2
    spans = (values[max(i - reach, 0) : i + reach + 1] for i in range(values.size))
    return np.array([np.median(span) for span in spans], dtype=np.float64)


def _pooled(series: Sequence[Series], column: Callable[[Series], "Floats"]) -> "Floats":
    """Return the values of all runs in one array, which may be empty."""
    return np.concatenate([np.empty(0), *(column(one) for one in series)])


def _column(table: pa.Table, name: str) -> "Floats":
    """Return a column as float64, null as NaN."""
    values: Floats = table[name].to_numpy().astype(np.float64)
    return values


def _mean(table: pa.Table, name: str) -> float:
    """Return the mean of a column without its nulls, 0 where there is nothing to average."""
    values = _column(table, name)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
