"""Figures of a factorial study: how large each term is, and how the effect of one factor depends on another."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv2.plots.style import COLUMN, PAGE, STYLE, arm_styles, headline, quantity, wrapped
from dsv2.statistics.factorial import Design, Level, Term, levels
from dsv2.statistics.verdicts import paired_values


def factorial_forest(
    terms: Sequence[Term], *, directions: Mapping[str, str] | None = None, title: str | None = None
) -> Figure:
    """Each term with its 95% interval, a panel a metric; interactions below the line. Filled: decided after Holm."""
    metrics, names = (list(dict.fromkeys(t.metric for t in terms)), list(dict.fromkeys(t.term for t in terms)))
    mains = len({term.term for term in terms if term.order == 1})
    colour = sns.color_palette("colorblind")[0]
    with plt.rc_context(STYLE):
        columns = min(len(metrics), 2)  # long names take half of a page
        rows, width = -(-len(metrics) // columns), PAGE if columns == 2 else 0.75 * PAGE
        size = (width, rows * (0.19 * len(names) + 0.8) + 0.15 * (len(wrapped(title, width)) if title else 0))
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
        axes = list(grid.flat)
        for ax in axes[len(metrics) :]:
            ax.remove()
        for ax, metric in zip(axes, metrics, strict=False):
            ax.axvline(0, color="0.3", linewidth=0.8)
            if mains < len(names):
                ax.axhline(mains - 0.5, color="0.6", linewidth=0.6, linestyle=(0, (4, 2)))
            for term in terms:
                if term.metric == metric:
                    place, face = names.index(term.term), colour if term.word in ("better", "worse") else "white"
                    ax.plot([term.low, term.high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
                    ax.plot(term.effect, place, marker="o", color=colour, markerfacecolor=face, markersize=4.5)
            name, _, unit = quantity(metric).label.partition(" (")
            ax.set_title(f"effect on {name}" + (f"\n({unit}" if unit else ""), fontsize=7)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.grid(False, axis="y")
            ax.set_xlabel({"lower": "← better", "higher": "better →"}.get((directions or {}).get(metric, ""), ""))
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        headline(figure, title)
    return figure


def interaction(
    results: pd.DataFrame,
    metric: str,
    design: Design,
    first: str,
    second: str,
    *,
    seeds: Sequence[int],
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The metric over the levels of `first`, a line a level of `second`, averaged over all other factors.

    Thin lines are single seeds, thick ones their mean. Parallel lines: no interaction.
    """
    ordered = levels(design)
    for factor in (first, second):
        if factor not in ordered:
            raise ValueError(f"factor={factor!r}: one of {', '.join(ordered)}")
    values = paired_values(results, metric, list(design), seeds)

    def mean(a: Level, b: Level) -> np.ndarray:
        cells = [values[arm] for arm, cell in design.items() if cell[first] == a and cell[second] == b]
        return np.mean(cells, axis=0)  # (n,)

    labels = {level: f"{second}={level}" for level in ordered[second]}
    styles, places = arm_styles(list(labels.values())), np.arange(len(ordered[first]))
    with plt.rc_context(STYLE):
        if ax is None:
            lines = len(wrapped(title, COLUMN)) if title else 0
            _, ax = plt.subplots(figsize=(COLUMN, 2.3 + 0.15 * lines))
            if title and isinstance(ax.figure, Figure):
                headline(ax.figure, title)
        elif title:
            ax.set_title(title)
        for level, label in labels.items():
            table = np.array([mean(a, level) for a in ordered[first]])  # (levels, n)
            ax.plot(places, table, color=styles[label]["color"], linewidth=0.5, alpha=0.35)
            ax.plot(places, table.mean(1), label=label, **styles[label])
        ax.set_xticks(places, [str(level) for level in ordered[first]])
        ax.set_xlim(-0.25, len(places) - 0.75)
        ax.set_xlabel(first)
        ax.set_ylabel(quantity(metric).label)
        ax.legend(loc="best")
    return ax
