"""Figures of a ladder of scales: loss over training compute with fitted curves, and difference to the baseline."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from dsv2.metrics import quantity
from dsv2.plots.style import (
    DASHED,
    ZERO,
    arm_styles,
    difference_label,
    handles,
    legend_columns,
    legend_within,
    power_of_ten,
    single,
    styled,
)
from dsv2.statistics.ladder import Ladder, Prediction, band
from dsv2.statistics.paired import Values, t_interval

HEIGHT = 2.7
LOSS = "val/loss"  # for labels, whatever the column of `runs` is called


@styled()
def loss_over_compute(
    runs: pd.DataFrame,
    ladder: Ladder | None,
    *,
    foretold: Sequence[Prediction] = (),
    loss: str = "loss",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a point per run and each arm's curve with its 95% band, dashed beyond the fitted rungs.

    `foretold` predictions are open diamonds with their intervals. Both axes are logarithmic. Without a `ladder`, as
    for too few rungs, points alone are drawn.
    """
    arms = list(ladder.fits) if ladder else list(dict.fromkeys(runs["arm"]))
    ax = single(HEIGHT, title, ax)
    for index, (arm, style) in enumerate(arm_styles(arms).items()):
        of_arm = runs[runs["arm"] == arm]
        ax.plot(of_arm["flops"], of_arm[loss], **(style | {"linestyle": "none", "markersize": 3, "alpha": 0.6}))
        predictions = [prediction for prediction in foretold if prediction.arm == arm and not prediction.minus]
        if ladder:
            _curve(ax, ladder, arm, None, of_arm, predictions, style["color"])
        ax.plot([], [], label=arm, **(style | {"linestyle": "-" if ladder else "none"}))
        _diamonds(ax, predictions, style["color"], index)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel(quantity(LOSS).label)
    _compute_axis(ax)
    _legend(ax)
    return ax


@styled()
def difference_over_compute(
    runs: pd.DataFrame,
    ladder: Ladder | None,
    baseline: str,
    *,
    foretold: Sequence[Prediction] = (),
    loss: str = "loss",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw arm minus baseline paired by seed: mean and 95% t interval at each rung, and the difference of the curves.

    The horizontal axis is the arm's compute; points of several arms are shifted slightly so that they do not overlap. A
    curve that moves away from zero means that the difference grows with scale. Without a `ladder`, as for too few
    rungs, there is no curve.
    """
    arms = list(ladder.fits) if ladder else list(dict.fromkeys(runs["arm"]))
    styles = arm_styles(arms)
    scales = list(dict.fromkeys(runs.sort_values("flops")["scale"]))
    ax = single(HEIGHT, title, ax)
    ax.axhline(0, **ZERO)
    others = [arm for arm in arms if arm != baseline]
    for i, arm in enumerate(others):
        style, shift = styles[arm], 1.05 ** (i - (len(others) - 1) / 2)
        predictions = [prediction for prediction in foretold if (prediction.arm, prediction.minus) == (arm, baseline)]
        for scale in scales:
            losses = runs[runs["scale"] == scale].pivot(index="seed", columns="arm", values=loss)
            if arm not in losses or baseline not in losses:
                continue
            delta = (losses[arm] - losses[baseline]).dropna().to_numpy(dtype=float)
            flops = shift * runs[(runs["scale"] == scale) & (runs["arm"] == arm)]["flops"].mean()
            ax.plot([flops] * 2, t_interval(delta), color=style["color"], linewidth=1.2)
            ax.plot(flops, delta.mean(), **(style | {"linestyle": "none"}))
        if ladder:
            _curve(ax, ladder, arm, baseline, runs[runs["arm"] == arm], predictions, style["color"])
        ax.plot([], [], label=arm, **(style | {"linestyle": "-" if ladder else "none"}))
        _diamonds(ax, predictions, style["color"], arms.index(arm))
    ax.set_ylabel(difference_label(LOSS, baseline))
    _compute_axis(ax)
    ax.yaxis.set_major_locator(MaxNLocator(5))
    _legend(ax)
    return ax


def _curve(
    ax: Axes,
    ladder: Ladder,
    arm: str,
    minus: str | None,
    of_arm: pd.DataFrame,
    predictions: Sequence[Prediction],
    colour: str,
) -> None:
    """Draw the fitted curve with its band, dashed beyond the fitted rungs; `of_arm` has the runs of the arm."""
    fitted = of_arm[of_arm["scale"].isin(list(ladder.scales))]["flops"]
    last = max([fitted.max(), *(prediction.flops for prediction in predictions)])
    flops: Values = np.geomspace(fitted.min(), last, 120)
    curve = ladder.fits[arm].at(flops) - (ladder.fits[minus].at(flops) if minus else 0.0)
    inner = flops <= fitted.max() * (1 + 1e-9)
    ax.plot(flops[inner], curve[inner], color=colour)
    if last > fitted.max():
        outer = flops >= fitted.max() * (1 - 0.02)
        ax.plot(flops[outer], curve[outer], color=colour, linestyle=DASHED)
    ax.fill_between(flops, *band(ladder, arm, flops, minus), color=colour, alpha=0.12, linewidth=0)


def _diamonds(ax: Axes, predictions: Sequence[Prediction], colour: str, index: int) -> None:
    """Draw predictions beside the observed points, shifted by the arm's index so that they do not overlap."""
    diamond: Any = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "linestyle": "none"}
    for prediction in predictions:
        flops = prediction.flops * 1.12 ** (index + 1)
        ax.plot([flops] * 2, [prediction.low, prediction.high], color=colour, linewidth=1)
        ax.plot(flops, prediction.predicted, color=colour, **diamond)


def _compute_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(power_of_ten)
    low, high = ax.get_xlim()
    if high < 15 * low:
        ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # labelled within a decade; more would overlap
        ax.xaxis.set_minor_formatter(power_of_ten)
    else:
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("training compute (FLOPs)")


def _legend(ax: Axes) -> None:
    columns = legend_columns(handles([ax])[1])
    legend_within(ax, loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=columns)
