"""The style shared by all figures, and common building blocks."""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from rich.cells import cell_len

from dsv2.metrics import quantity
from dsv2.plots import hover
from dsv2.plots.fonts import legible, lines, without_control

COLUMN, PAGE = 3.4, 7.0  # widths in inches
TITLE_LINE, LEGEND_ROW = 0.15, 0.17  # heights in inches
PANEL_TITLE = 34  # characters at 7 points that fit above one of three panels
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
    "text.parse_math": False,  # a dollar in a label is a dollar
}
MARKERS = "osD^vPXph<"
DASHES = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]
# Told apart with any kind of colour vision, none of them pale: seaborn's colorblind palette, its last ones darkened.
COLOURS = [
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#b85aa6"),
    *("#3f9fd8", "#8a5a2b", "#6f6f8f", "#7a7a00", "#a01040"),
]
DASHED: Any = (0, (4, 2))
REFERENCE: dict[str, Any] = {"color": "black", "linestyle": DASHED, "linewidth": 0.9}  # a reference level
ZERO: dict[str, Any] = {"color": "0.3", "linewidth": 0.8}
BETTER = {"lower": "← better", "higher": "better →"}  # by which direction is better

Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(changes: Mapping[str, Any] | None = None) -> Callable[[Drawing], Drawing]:
    """Decorate a drawing function to use `STYLE`, with `changes` to single rcParams, and to draw text in any script."""

    def decorate(draw: Drawing) -> Drawing:
        @functools.wraps(draw)
        def drawing(*args: Any, **kwargs: Any) -> Any:
            with rc_context(STYLE | dict(changes or {})):
                drawn = draw(*args, **kwargs)
                figure = drawn.figure if isinstance(drawn, Axes) else drawn
                if isinstance(figure, Figure):
                    legible(figure)
                return drawn

        return cast(Drawing, drawing)

    return decorate


def arm_styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the line properties of each arm, determined by its position in the study."""
    return {
        arm: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i % len(DASHES)],
            "markeredgecolor": "none" if MARKERS[i % len(MARKERS)] in "PX" else "white",  # thin already
            "markeredgewidth": 0.4,
        }
        for i, arm in enumerate(arms)
    }


def arms_of(table: pd.DataFrame) -> list[str]:
    """Return the distinct arms of a table, in the order of its rows."""
    return list(dict.fromkeys(table["arm"]))


# ---- figures and their titles ----------------------------------------------------------------------------------------


def single(height: float, title: str | None, ax: Axes | None = None) -> Axes:
    """Create one Axes of column width and `height` inches, plus the height of the title.

    A caller's own `ax` is returned unchanged, with the title wrapped above it.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        figure, ax = plt.subplots(figsize=(COLUMN, height + title_height(title, COLUMN)))
        headline(figure, title)
    elif title:
        ax.set_title("\n".join(lines(title, 40)))
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
    """Create a figure with `count` panels in at most `columns` columns; unused cells stay empty.

    `height` is that of a row and `margin` the extra height of the figure, in inches. The default width is a column for
    one panel per row, two thirds of the page for two, the page for more.
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


def even_columns(count: int, most: int = 4) -> int:
    """Return in how many columns, at most `most`, so many panels leave the fewest places empty; of equals the most."""
    return min(range(2, most + 1), key=lambda columns: (-count % columns, -columns)) if count > most else count


def figure_of(ax: Axes) -> Figure:
    """Return the figure of `ax`, which must not be a subfigure."""
    assert isinstance(ax.figure, Figure)
    return ax.figure


def headline(figure: Figure, title: str | None) -> None:
    """Set a left-aligned title above the whole figure."""
    if title:
        figure.suptitle("\n".join(wrapped(title, figure.get_size_inches()[0])), x=0.01, ha="left", fontsize=8)


def wrapped(title: str, width: float) -> list[str]:
    """Wrap a title into lines of `width` inches; a character at 8 points takes about 1/16 inch."""
    return lines(title, int(15.5 * width))


def title_height(title: str | None, width: float) -> float:
    """Return the height of a title above a figure of `width` inches, in inches; 0 without one."""
    return TITLE_LINE * len(wrapped(title, width)) if title else 0.0


def panel_title(ax: Axes, text: str, width: int = PANEL_TITLE) -> None:
    """Set the title of one panel of several, wrapped at `width` characters."""
    ax.set_title("\n".join(lines(text, width)), fontsize=7)


# ---- legends ---------------------------------------------------------------------------------------------------------


def handles(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Return handles and labels for one legend of all axes, each label once.

    Labels may start with an underscore, unlike in matplotlib, which takes them for its own.
    """
    artists: list[Any] = [artist for ax in axes for artist in (*ax.lines, *ax.patches, *ax.collections, *ax.containers)]
    labelled = {str(artist.get_label()): artist for artist in artists if artist.get_label()}
    by_label = {label: artist for label, artist in labelled.items() if not _OWN_LABEL.fullmatch(label)}
    return list(by_label.values()), list(by_label)


_OWN_LABEL = re.compile(r"_child\d+|_nolegend_|_container\d+")  # of matplotlib


def legend_within(ax: Axes, **look: Any) -> None:
    """Add a legend inside `ax`."""
    ax.legend(*handles([ax]), **look)


def legend_below(axes: Sequence[Axes], columns: int, **look: Any) -> None:
    """Add one legend for all axes below their figure, unless there are no labels; the layout makes room for it."""
    lines, labels = handles(axes)
    if labels:
        figure_of(axes[0]).legend(lines, labels, loc="outside lower center", ncols=columns, **look)


def legend_columns(labels: Iterable[str]) -> int:
    """Return how many labels fit side by side below a figure of column width."""
    return 3 if max(map(cell_len, labels), default=0) < 12 else 2


def legend_height(count: int, columns: int) -> float:
    """Return the height of a legend of `count` labels in `columns` columns, in inches."""
    return LEGEND_ROW * -(-count // columns)


# ---- axes ------------------------------------------------------------------------------------------------------------


def tokens_axis(ax: Axes) -> None:
    """Label the horizontal axis with training tokens."""
    large_numbers(ax, "training tokens")


def large_numbers(ax: Axes, label: str, ticks: int = 4) -> None:
    """Label the horizontal axis, with k, M and G for powers of a thousand."""
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(ticks))
    ax.set_xlabel(label)


def difference_label(metric: str, baseline: str) -> str:
    """Return the axis label for the difference in a metric between an arm and the baseline."""
    name, unit = quantity(metric)[:2]
    return f"{name},\narm - {baseline}" + (f" ({unit})" if unit else "")


def percent(axis: Axis, decimals: int | None = 0) -> None:
    """Format shares as percentages; `decimals=None` uses as many as the ticks need."""
    axis.set_major_formatter(PercentFormatter(1, decimals=decimals))


def tick_names(axis: Axis, positions: Sequence[float] | Any, names: Sequence[str]) -> None:
    """Label ticks with names, also on a caller's axes, whose ticks may exist already."""
    axis.set_ticks(positions, list(map(without_control, names)), parse_math=False)


def power_of_ten(value: float, _: object = None) -> str:
    """Format a number in powers of ten with raised digits, without mathematical markup."""
    digits, _, power = f"{value:.0e}".partition("e")
    factor = "" if digits == "1" else digits + "\N{MULTIPLICATION SIGN}"
    return f"{factor}10{str(int(power)).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def rows_axis(ax: Axes, names: Sequence[str]) -> None:
    """Label the rows of a figure, drawn at 0, 1, ... from the top."""
    tick_names(ax.yaxis, range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


# ---- drawing ---------------------------------------------------------------------------------------------------------


def floor_line(ax: Axes, floor: Mapping[str, float] | None, metric: str, *, vertical: bool = False) -> None:
    """Draw the random router's value of `metric`, if `floor` has it."""
    if floor and metric in floor:
        line = ax.axvline if vertical else ax.axhline
        line(floor[metric], label="random router", **REFERENCE)


def interval(
    ax: Axes, row: float, low: float, middle: float, high: float, *, filled: bool, marker: str = "o", text: str = ""
) -> None:
    """Draw an interval in one row of a figure, with a filled or hollow marker; `text` is what it says on a page."""
    colour = COLOURS[0]
    ax.plot([low, high], [row, row], color=colour, linewidth=1.4, solid_capstyle="butt")
    face = colour if filled else "white"
    (point,) = ax.plot(middle, row, marker=marker, color=colour, markerfacecolor=face, markersize=4.5)
    hover.say(point, [text])


def faint_interval(ax: Axes, row: float, low: float, middle: float, high: float, *, text: str = "") -> None:
    """Draw an exploratory interval in one row of a figure, thin and grey; `text` is what it says on a page."""
    ax.plot([low, high], [row, row], color="0.55", linewidth=0.8, solid_capstyle="butt")
    look: Any = {"color": "0.55", "markerfacecolor": "white", "markersize": 3, "markeredgewidth": 0.7}
    (point,) = ax.plot(middle, row, marker="o", **look)
    hover.say(point, [text])


def curves(
    metrics: pd.DataFrame, metric: str, arms: Sequence[str] | Mapping[str, Any]
) -> list[tuple[str, pd.DataFrame]]:
    """Return (arm, table of mean, min, max by tokens) for each arm that logged the metric."""
    rows = metrics[metrics["metric"] == metric]
    logged = set(rows["arm"])
    return [
        (arm, rows[rows["arm"] == arm].groupby("tokens")["value"].agg(["mean", "min", "max"]))
        for arm in arms
        if arm in logged
    ]


def draw_curves(ax: Axes, curves: list[tuple[str, pd.DataFrame]], styles: Mapping[str, dict[str, Any]]) -> None:
    """Draw a line and the band over seeds for each arm; the curves' index is the horizontal axis."""
    alpha = 0.15 if len(curves) <= 3 else 0.08  # many overlapping bands become unreadable
    for i, (arm, curve) in enumerate(curves):
        every = max(len(curve) // 5, 1)
        ax.plot(
            curve.index, curve["mean"], label=arm, markevery=(i * every // max(len(curves), 1), every), **styles[arm]
        )
        ax.fill_between(curve.index, curve["min"], curve["max"], color=styles[arm]["color"], alpha=alpha, linewidth=0)
    for arm, curve in curves:  # above all lines
        hover.say_along(ax, curve, arm)
