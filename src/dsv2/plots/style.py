"""The one look of all figures."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dsv2.metrics import quantity as quantity

COLUMN, PAGE = 3.4, 7.0  # inches
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


def arm_styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Line properties of each arm by its place in the study."""
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
    return list(dict.fromkeys(table["arm"]))


def panels(count: int, *, columns: int, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A grid of at most `columns` panels across the page, a column's width for one; unused places stay empty."""
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    rows = -(-count // columns)
    width = COLUMN if columns == 1 else PAGE * columns / 3 if columns == 2 else PAGE
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * height + 0.45), squeeze=False, sharey=sharey)
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def single(height: float, title: str | None) -> Axes:
    """One Axes of a column's width; the title's lines come on top of the height in inches."""
    import matplotlib.pyplot as plt

    lines = len(wrapped(title, COLUMN)) if title else 0
    _, ax = plt.subplots(figsize=(COLUMN, height + 0.15 * lines))
    return ax


def entitle(ax: Axes, title: str | None, own: bool) -> None:
    """Above a figure of our own the title has its full width; among a caller's panels that of a narrow one."""
    if own and isinstance(ax.figure, Figure):
        headline(ax.figure, title)
    elif title:
        ax.set_title(textwrap.fill(title, 40))


def headline(figure: Figure, title: str | None) -> None:
    """A title over the whole figure, from its left edge."""
    if title:
        lines = wrapped(title, figure.get_size_inches()[0])
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=8)


def wrapped(title: str, width: float) -> list[str]:
    """The lines of a title over so many inches; 8 points take about 1/16 inch a character."""
    return textwrap.wrap(title, int(15.5 * width))


# ---- curves over training --------------------------------------------------------------------------------------------


def curves(
    metrics: pd.DataFrame, metric: str, arms: Sequence[str] | Mapping[str, Any]
) -> list[tuple[str, pd.DataFrame]]:
    """(arm, table of mean, min, max by tokens) for the arms that logged it."""
    found = metrics[metrics["metric"] == metric]
    logged = set(found["arm"])
    return [
        (arm, found[found["arm"] == arm].groupby("tokens")["value"].agg(["mean", "min", "max"]))
        for arm in arms
        if arm in logged
    ]


def draw_curves(ax: Axes, curves: list[tuple[str, pd.DataFrame]], styles: Mapping[str, dict[str, Any]]) -> None:
    """A line and the band of its seeds for each arm; the curves' index is the horizontal axis."""
    alpha = 0.15 if len(curves) <= 3 else 0.08  # many bands on top of each other turn to mud
    for i, (arm, curve) in enumerate(curves):
        every = max(len(curve) // 5, 1)
        ax.plot(
            curve.index, curve["mean"], label=arm, markevery=(i * every // max(len(curves), 1), every), **styles[arm]
        )
        ax.fill_between(curve.index, curve["min"], curve["max"], color=styles[arm]["color"], alpha=alpha, linewidth=0)


def tokens_axis(ax: Axes) -> None:
    """Training tokens, with k, M and G for their thousands."""
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("training tokens")


def handles(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Handles and labels of one legend for all the axes, each label once."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)
