"""A metric over the learning rate. See `plots` for style and shared arguments."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dsv2.metrics import quantity
from dsv2.plots.style import (
    arm_styles,
    arms_of,
    draw_curves,
    handles,
    legend_below,
    legend_columns,
    legend_height,
    single,
    styled,
)


@styled()
def metric_over_lr(
    table: pd.DataFrame,
    metric: str = "val/loss",
    *,
    chosen: Mapping[str, float] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric over the learning rate: mean over seeds, with the range from the lowest to the highest seed.

    `table` has the columns arm, rate and value, a row per seed. A ring marks the rate `chosen` of each arm.
    """
    order = list(arms or arms_of(table))
    styles, columns = arm_styles(order), legend_columns(order)
    own, ax = ax is None, single(2.2 + legend_height(len(order), columns), title, ax)
    drawn = [(arm, rows.groupby("rate")["value"].agg(["mean", "min", "max"])) for arm, rows in table.groupby("arm")]
    curves = sorted(((str(arm), curve) for arm, curve in drawn), key=lambda pair: order.index(pair[0]))
    draw_curves(ax, curves, styles)
    for arm, curve in curves:
        if (rate := (chosen or {}).get(arm)) is not None:
            ring = {"marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgecolor": styles[arm]["color"]}
            ax.plot(rate, curve["mean"][rate], linestyle="none", label="_nolegend_", **ring)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sorted(table["rate"].unique())))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.2g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("learning rate")
    ax.set_ylabel(quantity(metric).label)
    if own:
        legend_below([ax], columns)
    else:
        lines, labels = handles([ax])
        ax.legend(lines, labels, loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=columns)
    return ax
