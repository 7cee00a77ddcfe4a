"""The look that all figures share, and the pieces that several of them are made of."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from dsv2.metrics import quantity

COLUMN, PAGE = 3.4, 7.0  # widths in inches
TITLE_LINE, LEGEND_ROW = 0.15, 0.17  # heights in inches
PANEL_TITLE = 34  # characters of 7 points that fit above one of three panels
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "legend.handlelength": 3.2,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
MARKERS = "osD^vPXph<"
DASHES = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]
COLOURS = [0, 1, 2, 3, 4, 9, 5, 7, 6, 8]  # of seaborn's colorblind palette, the pale ones last
DASHED: Any = (0, (4, 2))
REFERENCE: dict[str, Any] = {"color": "black", "linestyle": DASHED, "linewidth": 0.9}  # a level to compare with
ZERO: dict[str, Any] = {"color": "0.3", "linewidth": 0.8}
BETTER = {"lower": "← better", "higher": "better →"}  # by the direction that is better

Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(changes: Mapping[str, Any] | None = None) -> Callable[[Drawing], Drawing]:
    """Decorate a function that draws, so that it does so in `STYLE`, with `changes` of single rcParams."""
    return rc_context(STYLE | dict(changes or {}))


def arm_styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the line properties of each arm, which follow from its place in the study."""
    import seaborn as sns

    palette = sns.color_palette("colorblind")
    return {
        arm: {
            "color": palette[COLOURS[i % len(COLOURS)]],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
            "markeredgecolor": "none" if MARKERS[i % len(MARKERS)] in "PX" else "white",  # thin already
            "markeredgewidth": 0.4,
        }
        for i, arm in enumerate(arms)
    }


def arms_of(table: pd.DataFrame) -> list[str]:
    """Return the arms of a table, each once, in the order of its rows."""
    return list(dict.fromkeys(table["arm"]))


# ---- figures and their titles ----------------------------------------------------------------------------------------


def single(height: float, title: str | None, ax: Axes | None = None) -> Axes:
    """Return one Axes of a column's width under its title, whose lines come on top of `height` (inches).

    A caller's own `ax` is returned as it is, with the title above it broken as among narrow panels.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        figure, ax = plt.subplots(figsize=(COLUMN, height + title_height(title, COLUMN)))
        headline(figure, title)
    elif title:
        ax.set_title(textwrap.fill(title, 40))
    return ax


def panels(
    count: int,
    *,
    columns: int,
    height: float,
    title: str | None = None,
    sharey: bool = False,
    width: float | None = None,
    margin: float = 0.45,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels in at most `columns` columns; unused places stay empty.

    `height` is that of a row and `margin` what all rows together have beside it, in inches. The default width is a
    column for one panel in a row, two thirds of the page for two, the page for more.
    """
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    rows = -(-count // columns)
    if width is None:
        width = COLUMN if columns == 1 else PAGE * columns / 3 if columns == 2 else PAGE
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * height + margin), squeeze=False, sharey=sharey)
    for ax in axes.flat[count:]:
        ax.remove()
    headline(figure, title)
    return figure, list(axes.flat[:count])


def figure_of(ax: Axes) -> Figure:
    """Return the figure that `ax` is in, which is not one of several in a larger one."""
    assert isinstance(ax.figure, Figure)
    return ax.figure


def headline(figure: Figure, title: str | None) -> None:
    """Put a title over the whole figure, from its left edge."""
    if title:
        lines = wrapped(title, figure.get_size_inches()[0])
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8)


def wrapped(title: str, width: float) -> list[str]:
    """Break a title into lines of `width` inches; 8 points take about 1/16 inch per character."""
    return textwrap.wrap(title, int(15.5 * width))


def title_height(title: str | None, width: float) -> float:
    """Return the inches that a title takes above a figure of `width` inches; 0 without one."""
    return TITLE_LINE * len(wrapped(title, width)) if title else 0.0


def panel_title(ax: Axes, text: str, width: int = PANEL_TITLE) -> None:
    """Name one panel of several in lines of `width` characters."""
    ax.set_title(textwrap.fill(text, width), fontsize=7)


# ---- legends ---------------------------------------------------------------------------------------------------------


def handles(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Return handles and labels of one legend for all the axes, each label once."""
    by_label = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    return list(by_label.values()), list(by_label)


def legend_below(axes: Sequence[Axes], columns: int, **look: Any) -> None:
    """Put one legend for all the axes under their figure, whose layout makes room for it; none without labels."""
    lines, labels = handles(axes)
    if labels:
        figure_of(axes[0]).legend(lines, labels, loc="outside lower center", ncols=columns, **look)


def legend_columns(labels: Iterable[str]) -> int:
    """Return how many labels fit side by side below a figure of a column's width."""
    return 3 if max(map(len, labels), default=0) < 12 else 2


def legend_height(count: int, columns: int) -> float:
    """Return the inches that `count` labels in `columns` columns take below a figure."""
    return LEGEND_ROW * -(-count // columns)


# ---- axes ------------------------------------------------------------------------------------------------------------


def tokens_axis(ax: Axes) -> None:
    """Label the horizontal axis with training tokens."""
    large_numbers(ax, "training tokens")


def large_numbers(ax: Axes, label: str, ticks: int = 4) -> None:
    """Label the horizontal axis, with k, M and G for thousands of what it counts."""
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(ticks))
    ax.set_xlabel(label)


def difference_label(metric: str, baseline: str) -> str:
    """Name the difference in a metric between an arm and the baseline."""
    name, unit = quantity(metric)
    return f"{name},\narm - {baseline}" + (f" ({unit})" if unit else "")


def percent(axis: Axis, decimals: int | None = 0) -> None:
    """Write shares as percentages; `decimals=None` takes as many as the ticks need."""
    axis.set_major_formatter(PercentFormatter(1, decimals=decimals))


def rows_axis(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows of a figure, drawn at 0, 1, ... from the top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def floor_line(ax: Axes, floor: Mapping[str, float] | None, metric: str, *, vertical: bool = False) -> None:
    """Draw what a random router has in `metric`, where `floor` knows it."""
    if floor and metric in floor:
        line = ax.axvline if vertical else ax.axhline
        line(floor[metric], label="random router", **REFERENCE)


def interval(ax: Axes, row: int, low: float, middle: float, high: float, *, filled: bool, marker: str = "o") -> None:
    """Draw an interval across one row of a figure, with a filled or hollow marker in it."""
    import seaborn as sns

    colour = sns.color_palette("colorblind")[0]
    ax.plot([low, high], [row, row], color=colour, linewidth=1.4, solid_capstyle="butt")
    face = colour if filled else "white"
    ax.plot(middle, row, marker=marker, color=colour, markerfacecolor=face, markersize=4.5)


def curves(
    metrics: pd.DataFrame, metric: str, arms: Sequence[str] | Mapping[str, Any]
) -> list[tuple[str, pd.DataFrame]]:
    """Return (arm, table of mean, min, max by tokens) for each of the arms that logged the metric."""
    rows = metrics[metrics["metric"] == metric]
    logged = set(rows["arm"])
    return [
        (arm, rows[rows["arm"] == arm].groupby("tokens")["value"].agg(["mean", "min", "max"]))
        for arm in arms
        if arm in logged
    ]


def draw_curves(ax: Axes, curves: list[tuple[str, pd.DataFrame]], styles: Mapping[str, dict[str, Any]]) -> None:
    """Draw a line and the band of its seeds per arm; the curves' index is the horizontal axis."""
    alpha = 0.15 if len(curves) <= 3 else 0.08  # many bands on top of each other turn to mud
    for i, (arm, curve) in enumerate(curves):
        every = max(len(curve) // 5, 1)
        ax.plot(
            curve.index, curve["mean"], label=arm, markevery=(i * every // max(len(curves), 1), every), **styles[arm]
        )
        ax.fill_between(curve.index, curve["min"], curve["max"], color=styles[arm]["color"], alpha=alpha, linewidth=0)
