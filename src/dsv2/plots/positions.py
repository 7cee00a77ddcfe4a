"""Loss over the position in the sequence. See `plots` for style and shared arguments."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dsv2.metrics import losses_at
from dsv2.plots.style import (
    DASHED,
    arm_styles,
    arms_of,
    draw_curves,
    legend_below,
    legend_columns,
    legend_height,
    panel_title,
    panels,
    styled,
)


@styled()
def loss_over_position(
    results: pd.DataFrame,
    trained_length: int,
    *,
    families: Mapping[str, Sequence[str]] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the loss at each position: mean over seeds, with the range from the lowest to the highest seed.

    `results` has a row per trial and the columns `bench/loss_at_<position>`. Each of `families`, a baseline and the
    arms compared with it, has a panel; the dashed line is `trained_length`, in tokens.
    """
    order = list(arms or arms_of(results))
    columns = losses_at(results.columns)
    if not columns:
        raise ValueError("results: no loss at positions; run with benchmarks=positions")
    first = min(columns.values())
    styles, groups = arm_styles(order), dict(families or {"": order})
    columns_below = legend_columns(order)
    margin = 0.25 + legend_height(len(order), columns_below)
    figure, axes = panels(len(groups), columns=2, height=2.3, margin=margin, title=title, sharey=True)
    for ax, (baseline, members) in zip(axes, groups.items(), strict=True):
        ax.axvline(trained_length, color="0.3", linestyle=DASHED, linewidth=0.8, zorder=0)
        drawn = []
        for arm in (arm for arm in order if arm in members):
            rows = results[results["arm"] == arm][list(columns)].dropna()
            if len(rows):
                drawn.append((arm, rows.rename(columns=columns).T.agg(["mean", "min", "max"], axis=1)))
        draw_curves(ax, drawn, styles)
        if baseline:
            panel_title(ax, f"{baseline} and compared with it")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator([end for end in columns.values() if _doubled(end, first)]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda position, _: f"{position:,.0f}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("position (tokens)")
    axes[0].set_ylabel("loss (nats/token)")
    legend_below(axes, columns_below)
    return figure


def _doubled(end: int, first: int) -> bool:
    """Whether a position is `first`, doubled any number of times."""
    times, rest = divmod(end, first)
    return rest == 0 and times & (times - 1) == 0
