"""Figures of what a loss costs. See `plots` for the look and the arguments they share."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from dsv2.analysis.budgets import equal_budgets, spent
from dsv2.analysis.curves import draw_curves, handles
from dsv2.analysis.style import PAGE, STYLE, arm_styles, arms_of, headline, quantity

AXES = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": "training seconds"}


def loss_over_budgets(
    metrics: pd.DataFrame,
    accounting: pd.DataFrame,
    *,
    metric: str = "val/loss",
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """The same curves over tokens, FLOPs and seconds: mean and range over seeds, each at the mean of its seeds' cost.

    The dashed line is the largest budget that every trial reached; `budgets.loss_at_equal` reads the curves there.
    """
    styles = arm_styles(arms or arms_of(metrics))
    table = spent(metrics[metrics["arm"].isin(list(styles))], accounting, metric)
    equal = equal_budgets(table)
    by_arm = {
        arm: one.groupby("tokens").agg(
            tokens=("tokens", "mean"), flops=("flops", "mean"), seconds=("seconds", "mean"),
            mean=("value", "mean"), min=("value", "min"), max=("value", "max"),
        )
        for arm, one in table.groupby("arm")
    }  # fmt: skip
    with plt.rc_context(STYLE):
        legend_rows = -(-(len(by_arm) + 1) // 4)
        figure, axes = plt.subplots(1, 3, figsize=(PAGE, 2.4 + 0.17 * legend_rows), sharey=True)
        for ax, (budget, label) in zip(axes, AXES.items(), strict=True):
            drawn = [(arm, by_arm[arm].set_index(budget)) for arm in styles if arm in by_arm]
            draw_curves(ax, drawn, styles)
            dashed = {"color": "0.3", "linestyle": (0, (4, 2)), "linewidth": 0.8, "zorder": 0}
            ax.axvline(equal[budget], label="reached by every trial", **dashed)
            _budget_axis(ax, label)
        axes[0].set_ylabel(quantity(metric).label)
        found, labels = handles(axes)
        figure.legend(found, labels, loc="outside lower center", ncols=min(len(labels), 4))
        headline(figure, title)
    return figure


def _budget_axis(ax: Axes, label: str) -> None:
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel(label)
