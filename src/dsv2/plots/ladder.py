"""Figures of a ladder of scales: loss over training compute with fitted curves, and the difference to the baseline."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from dsv2.plots.style import COLUMN, STYLE, arm_styles, headline, wrapped
from dsv2.statistics.ladder import Ladder, Prediction, band
from dsv2.statistics.paired import Values, t_interval


def loss_over_compute(
    runs: pd.DataFrame,
    ladder: Ladder,
    *,
    told: Sequence[Prediction] = (),
    loss: str = "loss",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A point a run, each arm's curve with its 95% band, dashed beyond the rungs that it was fitted to.

    `told` are predictions: an open diamond with its interval, at the rung it foretells. Both axes are logarithmic.
    """
    arms = list(ladder.fits)
    styles = arm_styles(arms)
    with plt.rc_context(STYLE):
        ax = ax or _single(title)
        for arm, style in styles.items():
            mine = runs[runs["arm"] == arm]
            fitted = mine[mine["scale"].isin(list(ladder.scales))]
            ax.plot(mine["flops"], mine[loss], **(style | {"linestyle": "none", "markersize": 3, "alpha": 0.6}))
            told_here = [one for one in told if one.arm == arm and not one.minus]
            _curve(ax, ladder, arm, None, fitted["flops"], [one.flops for one in told_here], style["color"])
            ax.plot([], [], label=arm, **(style | {"linestyle": "-"}))
            for one in told_here:
                _foretold(ax, one, style["color"], arms.index(arm))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(ScalarFormatter())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylabel("validation loss (nats/token)")
        _finish(ax, title)
    return ax


def difference_over_compute(
    runs: pd.DataFrame,
    ladder: Ladder,
    baseline: str,
    *,
    told: Sequence[Prediction] = (),
    loss: str = "loss",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Arm minus baseline paired by seed: mean and 95% t interval at each rung, and the difference of the two curves.

    Against the arm's own compute, points of several arms a little beside it, so that all are seen where compute is
    equal. A curve that leaves zero behind says that the difference grows with scale.
    """
    arms = list(ladder.fits)
    styles = arm_styles(arms)
    scales = list(dict.fromkeys(runs.sort_values("flops")["scale"]))
    with plt.rc_context(STYLE):
        ax = ax or _single(title)
        ax.axhline(0, color="0.3", linewidth=0.8)
        others = [arm for arm in arms if arm != baseline]
        for i, arm in enumerate(others):
            style, beside = styles[arm], 1.05 ** (i - (len(others) - 1) / 2)
            mine = runs[(runs["arm"] == arm) & runs["scale"].isin(list(ladder.scales))]
            told_here = [one for one in told if (one.arm, one.minus) == (arm, baseline)]
            for scale in scales:
                here = runs[runs["scale"] == scale].pivot(index="seed", columns="arm", values=loss)
                if arm not in here or baseline not in here:
                    continue
                delta = (here[arm] - here[baseline]).dropna().to_numpy(dtype=float)
                flops = beside * runs[(runs["scale"] == scale) & (runs["arm"] == arm)]["flops"].mean()
                ax.plot([flops] * 2, t_interval(delta), color=style["color"], linewidth=1.2)
                ax.plot(flops, delta.mean(), **(style | {"linestyle": "none"}))
            _curve(ax, ladder, arm, baseline, mine["flops"], [one.flops for one in told_here], style["color"])
            ax.plot([], [], label=arm, **(style | {"linestyle": "-"}))
            for one in told_here:
                _foretold(ax, one, style["color"], arms.index(arm))
        ax.set_xscale("log")
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set_ylabel(f"validation loss,\narm - {baseline} (nats/token)")
        _finish(ax, title)
    return ax


def _curve(
    ax: Axes,
    ladder: Ladder,
    arm: str,
    minus: str | None,
    fitted: "pd.Series[float]",
    beyond: Sequence[float],
    colour: str,
) -> None:
    """The fitted curve over the rungs, dashed on to what is foretold, with its band."""
    last = max([fitted.max(), *beyond])
    flops: Values = np.geomspace(fitted.min(), last, 120)
    curve = ladder.fits[arm].at(flops) - (ladder.fits[minus].at(flops) if minus else 0.0)
    inner = flops <= fitted.max() * (1 + 1e-9)
    ax.plot(flops[inner], curve[inner], color=colour)
    if last > fitted.max():
        outer = flops >= fitted.max() * (1 - 0.02)
        ax.plot(flops[outer], curve[outer], color=colour, linestyle=(0, (4, 2)))
    ax.fill_between(flops, *band(ladder, arm, flops, minus), color=colour, alpha=0.12, linewidth=0)


def _foretold(ax: Axes, one: Prediction, colour: str, step: int) -> None:
    """Beside the points that were observed, each arm a step further, so that all are seen."""
    place = one.flops * 1.12 ** (step + 1)
    ax.plot([place] * 2, [one.low, one.high], color=colour, linewidth=1)
    ax.plot(place, one.predicted, marker="D", markersize=4.5, color=colour, markerfacecolor="white", linestyle="none")


def _finish(ax: Axes, title: str | None) -> None:
    low, high = ax.get_xlim()
    if high < 15 * low:
        ax.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # within a decade these are labelled; more would collide
        ax.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))
    ax.set_xlabel("training compute (FLOPs)")
    columns = 3 if max((len(text) for text in ax.get_legend_handles_labels()[1]), default=0) < 12 else 2
    ax.legend(loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=columns)
    if title and not isinstance(ax.figure, Figure):
        ax.set_title(title)


def _single(title: str | None) -> Axes:
    lines = len(wrapped(title, COLUMN)) if title else 0
    figure, ax = plt.subplots(figsize=(COLUMN, 2.7 + 0.15 * lines))
    headline(figure, title)
    return ax
