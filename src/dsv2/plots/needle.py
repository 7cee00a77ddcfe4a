"""Figures of needles in a haystack. See `plots` for style and shared arguments.

Both read a table with one row per question (`dsv2.evaluation.needle`), with columns length, depth, correct and, for
several models, arm and seed.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dsv2.metrics import chance
from dsv2.plots.style import (
    COLUMN,
    PAGE,
    REFERENCE,
    arm_styles,
    arms_of,
    draw_curves,
    legend_below,
    legend_columns,
    legend_height,
    panel_title,
    panels,
    percent,
    styled,
    tick_names,
)
from dsv2.statistics.shares import found_by_length


@styled({"axes.grid": False})
def needle_heatmap(table: pd.DataFrame, *, arms: Sequence[str] | None = None, title: str | None = None) -> Figure:
    """Draw the share of answers found by length and depth, mean over seeds, a panel per arm (the report's Figure 4)."""
    named = table if "arm" in table else table.assign(arm="")
    shown = [arm for arm in arms or arms_of(named) if arm in set(named["arm"])]
    width = COLUMN if len(shown) == 1 else PAGE
    figure, axes = panels(len(shown), columns=4, height=1.5, title=title, sharey=True, width=width, margin=0.55)
    for ax, arm in zip(axes, shown, strict=True):
        of_arm = named[named["arm"] == arm]
        cells, lengths = of_arm.pivot_table("correct", "depth", "length"), sorted(set(of_arm["length"]))
        mesh = ax.pcolormesh(cells.to_numpy(dtype=float), vmin=0, vmax=1, cmap="viridis", rasterized=True)
        panel_title(ax, arm, width=26)
        tick_names(ax.xaxis, np.arange(cells.shape[1]) + 0.5, list(map(_thousands, lengths)))
        rows = np.linspace(0, len(cells) - 1, min(len(cells), 5)).round().astype(int)
        tick_names(ax.yaxis, rows + 0.5, [f"{depth:.0%}" for depth in cells.index[rows]])
    axes[0].invert_yaxis()  # of all, which share it: the start of the text is on top
    figure.supxlabel("tokens", fontsize=8)
    figure.supylabel("depth of the needle", fontsize=8)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, fraction=0.04)
    percent(bar.ax.yaxis)
    bar.set_label("answers found")
    return figure


@styled()
def found_over_length(
    table: pd.DataFrame,
    *,
    families: Mapping[str, Sequence[str]] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the share of answers found over length: mean and 95% t interval over seeds or, for one, over questions.

    Each of `families`, a baseline and the arms compared with it, has a panel.
    """
    shares = found_by_length(table)
    order = [arm for arm in arms or arms_of(shares) if arm in set(shares["arm"])]
    styles, groups = arm_styles(order), dict(families or {"": order})
    columns = legend_columns(order)
    width = COLUMN if len(groups) == 1 else PAGE
    margin = 0.25 + legend_height(len(order) + 1, columns)
    figure, axes = panels(len(groups), columns=2, height=1.9, margin=margin, title=title, sharey=True, width=width)
    lengths, level = sorted(set(shares["length"])), chance("bench/needle")
    assert level is not None
    lines = shares.rename(columns={"low": "min", "high": "max"}).set_index("length").sort_index()
    for ax, (baseline, members) in zip(axes, groups.items(), strict=True):
        drawn = [(arm, lines[lines["arm"] == arm]) for arm in order if arm in members]
        draw_curves(ax, drawn, styles)
        ax.axhline(level, label="chance", **REFERENCE)
        if baseline:
            panel_title(ax, f"{baseline} and compared with it")
        ax.set_xscale("log", base=2)
        tick_names(ax.xaxis, lengths, list(map(_thousands, lengths)))
        ax.set_ylim(-0.03, 1.03)
        percent(ax.yaxis)
        ax.set_xlabel("tokens")
    axes[0].set_ylabel("answers found")
    if len(order) > 1:
        legend_below(axes, columns)
    return figure


def _thousands(tokens: int) -> str:
    """Format a number of tokens, with K for 1,024."""
    return str(tokens) if tokens < 1024 or tokens % 1024 else f"{tokens // 1024}K"
