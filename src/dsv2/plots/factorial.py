"""Figures of a factorial study: the size of each term, and the interaction of two factors."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv2.metrics import quantity
from dsv2.plots.style import (
    BETTER,
    DASHED,
    PAGE,
    ZERO,
    arm_styles,
    faint_interval,
    legend_below,
    legend_columns,
    legend_height,
    legend_within,
    panels,
    rows_axis,
    single,
    styled,
    tick_names,
    title_height,
)
from dsv2.statistics.factorial import Design, Level, Term, level_text, levels
from dsv2.statistics.verdicts import difference_text, paired_values


@styled()
def factorial_forest(
    terms: Sequence[Term], *, directions: Mapping[str, str] | None = None, title: str | None = None
) -> Figure:
    """Draw each term with its 95% interval, a panel per metric; interactions are below the line. All is exploratory."""
    metrics, names = (list(dict.fromkeys(t.metric for t in terms)), list(dict.fromkeys(t.term for t in terms)))
    mains = len({term.term for term in terms if term.order == 1})
    width = PAGE if len(metrics) > 1 else 0.75 * PAGE  # long names take half a page
    height, margin = 0.19 * len(names) + 0.8, title_height(title, width)
    figure, axes = panels(len(metrics), columns=2, height=height, title=title, sharey=True, width=width, margin=margin)
    for ax, metric in zip(axes, metrics, strict=True):
        ax.axvline(0, **ZERO)
        if mains < len(names):
            ax.axhline(mains - 0.5, color="0.6", linewidth=0.6, linestyle=DASHED)
        for term in terms:
            if term.metric == metric:
                text = f"{term.term}\n{difference_text(term.effect, term.low, term.high)}"
                faint_interval(ax, names.index(term.term), term.low, term.effect, term.high, text=text)
        name, unit = quantity(metric)[:2]
        ax.set_title(f"effect on {name}" + (f"\n({unit})" if unit else ""), fontsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(False, axis="y")
        ax.set_xlabel(BETTER.get((directions or {}).get(metric, ""), ""))
    rows_axis(axes[0], names)
    return figure


@styled()
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
    """Draw the metric over the levels of `first`, a line per level of `second`, averaged over all other factors.

    Thin lines are single seeds, thick lines their mean. Parallel lines mean no interaction.
    """
    ordered = levels(design)
    for factor in (first, second):
        if factor not in ordered:
            raise ValueError(f"factor={factor!r}: must be one of {', '.join(ordered)}")
    values = paired_values(results, metric, list(design), seeds)

    def mean(a: Level, b: Level) -> np.ndarray:
        cells = [values[arm] for arm, cell in design.items() if cell[first] == a and cell[second] == b]
        return np.mean(cells, axis=0)  # (n,)

    labels = {level: f"{second}={level_text(level)}" for level in ordered[second]}
    styles, positions = arm_styles(list(labels.values())), np.arange(len(ordered[first]))
    own, ax = ax is None, single(2.3 + legend_height(len(labels), legend_columns(labels.values())), title, ax)
    for level, label in labels.items():
        table = np.array([mean(a, level) for a in ordered[first]])  # (levels, n)
        ax.plot(positions, table, color=styles[label]["color"], linewidth=0.5, alpha=0.35)
        ax.plot(positions, table.mean(1), label=label, **styles[label])
    tick_names(ax.xaxis, positions, [level_text(level) for level in ordered[first]])
    ax.set_xlim(-0.25, len(positions) - 0.75)
    ax.set_xlabel(first)
    ax.set_ylabel(quantity(metric).label)
    if own:
        legend_below([ax], legend_columns(labels.values()))
    else:
        legend_within(ax, loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=legend_columns(labels.values()))
    return ax
