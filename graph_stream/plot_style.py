"""The look all pictures of a report share: palette, page, legend, axes, and how a figure becomes files.

matplotlib is an optional extra, so it is imported when a figure is asked for and never before. Figures are
built through its object-oriented interface on the Agg canvas: no display, no pyplot, nothing left behind.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np

from graph_stream.errors import GraphStreamError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")

# Okabe and Ito's colours stay apart under the common forms of colour blindness. A colour has one meaning in
# all pictures: three for the modes, the others for the phases of an epoch.
MODE_COLORS: Mapping[str, str] = {"none": "#0072B2", "async": "#009E73", "sync": "#D55E00"}
PHASE_COLORS: Mapping[str, str] = {
    "read": "#C8C8C8",
    "wait": "#56B4E9",
    "online": "#CC79A7",
    "publish": "#E69F00",
}
INK, MUTED, SHADE, ALARM = "#222222", "#666666", "#F1F1F1", "#B00020"
DASHES: Sequence[Any] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
FORMATS = ("png", "pdf")

_SIZE_INCHES, _DOTS_PER_INCH = (7.2, 4.2), 200
_CHARACTERS_PER_LEGEND_ROW, _LEGEND_ROW_INCHES = 84, 0.2
_LOG_SPREAD = 20.0  # an end this many medians away would squeeze the body of the data on a linear axis
_STYLE: Any = {
    "font.size": 9.5,
    "text.usetex": False,
    "text.parse_math": False,  # labels are the user's words: a dollar sign is a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#999999",
    "ytick.color": "#999999",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "pdf.fonttype": 42,  # TrueType outlines: text stays selectable, and print shops accept the file
}


class MatplotlibMissing(GraphStreamError, ImportError):
    """Pictures were asked for without the optional extra that draws them."""


def require_matplotlib() -> None:
    """Check that pictures can be drawn.

    Raises
    ------
    MatplotlibMissing
        matplotlib cannot be imported; the message names the command that installs it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        message = (
            f"a report draws its pictures with matplotlib, which cannot be imported ({error}); "
            "install it with: pip install 'exoflow[report]'"
        )
        raise MatplotlibMissing(message) from error


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function that draws or saves under this module's look, whatever the user's matplotlibrc says.

    The function raises `MatplotlibMissing` where matplotlib cannot be imported.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        require_matplotlib()
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return function(*args, **kwargs)

    return wrapper


@styled
def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write a figure as `stem.png` and `stem.pdf`; the same figure gives the same bytes.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        The figure.
    stem : pathlib.Path
        Path without its suffix.

    Returns
    -------
    list of pathlib.Path
        The files written, in the order of `FORMATS`.
    """
    # Neither the date nor the library's version belongs to the picture.
    dateless: Mapping[str, Any] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in FORMATS]
    for path, suffix in zip(paths, FORMATS, strict=True):
        figure.savefig(path, format=suffix, dpi=_DOTS_PER_INCH, metadata=dateless[suffix])
    return paths


def canvas(headline: str, caption: str) -> tuple["Figure", "Axes"]:
    """Start a figure: headline on top, caption at the foot, room for the legend above the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(headline, x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(caption, x=0.012, ha="left", fontsize=8, color=MUTED)
    return figure, figure.add_subplot()


def legend(axes: "Axes", entries: Mapping[str, "Artist"]) -> None:
    """Put a legend in rows above the axes, where no data can be; the page grows for more than one row.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        The axes.
    entries : mapping of str to matplotlib.artist.Artist
        What to show for each label, in order.
    """
    widths = [len(label) + 7 for label in entries]
    fits_one_row = sum(widths) <= _CHARACTERS_PER_LEGEND_ROW
    columns = len(entries) if fits_one_row else max(1, _CHARACTERS_PER_LEGEND_ROW // max(widths))
    axes.legend(
        list(entries.values()),
        list(entries),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        borderaxespad=0.4,
        borderpad=0,
        handlelength=2.2,
        columnspacing=1.8,
    )
    grow(axes, _LEGEND_ROW_INCHES * (math.ceil(len(entries) / columns) - 1))


def grow(axes: "Axes", inches: float) -> None:
    """Make the page higher, so that what is put on it does not eat into the axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # these axes came from `canvas`
    figure.set_figheight(figure.get_figheight() + inches)


def say_empty(axes: "Axes", text: str) -> None:
    """Say in the middle of empty axes why they are empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=12, color=MUTED)
    axes.set_xticks([])
    axes.set_yticks([])


def scale_milliseconds(axes: "Axes", direction: Literal["x", "y"], values_ms: "NDArray[np.float64]") -> str:
    """Scale an axis for latencies: from zero, or logarithmic where the tail would hide the body.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        The axes.
    direction : {"x", "y"}
        Which axis of it.
    values_ms : numpy.ndarray of float64
        All values on it; at least one.

    Returns
    -------
    str
        What the axis label has to say about the scale; empty for a linear axis.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    lowest, highest = float(values_ms.min()), float(values_ms.max())
    logarithmic = lowest > 0 and highest > _LOG_SPREAD * float(np.median(values_ms))
    axis = axes.xaxis if direction == "x" else axes.yaxis
    if logarithmic:
        axes.set(**{f"{direction}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    else:
        axes.set(**{f"{direction}lim": (min(0.0, lowest), max(highest * 1.03, 1e-3))})
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
    return ", log scale" if logarithmic else ""


def whole_numbers(axes: "Axes") -> None:
    """Tick the x axis at whole epochs only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))


def mark_shares(axes: "Axes", shares: Iterable[tuple[float, str]]) -> None:
    """Draw a dotted guide across the axes at each share, named at the right edge."""
    for share, name in shares:
        axes.axhline(share, color="#9A9A9A", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            name,
            (1, share),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=MUTED,
            annotation_clip=False,
        )


def shade(axes: "Axes", start: float, end: float, text: str) -> None:
    """Shade a range of x behind the data and name it at the top."""
    axes.axvspan(start, end, color=SHADE, zorder=0)
    axes.annotate(
        text,
        ((start + end) / 2, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, -5),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=8.5,
        color=MUTED,
        bbox={"facecolor": SHADE, "edgecolor": "none", "pad": 1},
    )
