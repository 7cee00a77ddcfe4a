"""Figures of the calibration: false positives against the 5% line, and power against what was stated."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dsv2.plots.style import COLUMN, STYLE, arm_styles, headline, quantity, wrapped
from dsv2.statistics.calibration import Rate, TrialsRate
from dsv2.statistics.paired import ALPHA, POWER, detectable_in_sd, paired_power


def false_positive_rates(
    rates: Sequence[Rate | TrialsRate], *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """A row a rate with its 95% interval, against the promised 5%: by metric for real trials, else by noise.

    Filled where the whole interval lies above 5%, that is, where the promise is broken.
    """
    colour = sns.color_palette("colorblind")[0]
    with plt.rc_context(STYLE):
        if ax is None:
            lines = len(wrapped(title, COLUMN)) if title else 0
            figure, ax = plt.subplots(figsize=(COLUMN, 0.19 * len(rates) + 0.75 + 0.15 * lines))
            headline(figure, title)
        elif title:
            ax.set_title(title)
        ax.axvline(ALPHA, color="black", linestyle=(0, (4, 2)), linewidth=0.9)
        for place, rate in enumerate(rates):
            ax.plot([rate.low, rate.high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
            face = colour if rate.low > ALPHA else "white"
            ax.plot(rate.rate, place, marker="o", color=colour, markerfacecolor=face, markersize=4.5)
        ax.set_yticks(range(len(rates)), [_row(rate) for rate in rates])
        ax.set_ylim(len(rates) - 0.5, -0.5)
        ax.set_xlim(left=0)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=2))
        ax.grid(False, axis="y")
        ax.set_xlabel("studies that tell\nequal arms apart")
    return ax


def power_by_effect(found: Sequence[tuple[float, Rate]], *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Simulated power over the effect in standard deviations of the paired differences, a colour a number of seeds.

    `found` pairs each effect with its rate, all of one number of arms; lines are what is stated for Holm's first
    rejection, and the vertical marks the effect called detectable.
    """
    (arms,) = {rate.arms for _, rate in found}
    level, top = ALPHA / (arms - 1), max(effect for effect, _ in found)
    seeds = sorted({rate.seeds for _, rate in found})
    labels = {n: f"{n} seeds" for n in seeds}
    styles = arm_styles(list(labels.values()))
    with plt.rc_context(STYLE):
        if ax is None:
            lines = len(wrapped(title, COLUMN)) if title else 0
            figure, ax = plt.subplots(figsize=(COLUMN, 2.4 + 0.15 * lines))
            headline(figure, title)
        elif title:
            ax.set_title(title)
        ax.axhline(POWER, color="black", linestyle=(0, (4, 2)), linewidth=0.9)
        effects = np.linspace(0, top, 120)
        for n in seeds:
            style = styles[labels[n]]
            ax.plot(effects, [paired_power(n, effect, level) for effect in effects], color=style["color"])
            ax.plot([detectable_in_sd(n, level)] * 2, [0, POWER], color=style["color"], linewidth=0.6, alpha=0.6)
            for effect, rate in found:
                if rate.seeds == n:
                    ax.plot([effect] * 2, [rate.low, rate.high], color=style["color"], linewidth=1)
                    ax.plot(effect, rate.rate, **(style | {"linestyle": "none"}))
            ax.plot([], [], label=labels[n], **(style | {"linestyle": "-"}))
        ax.set_ylim(0, 1.02)
        ax.set_xlim(0, top * 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_ylabel("effect found (share of studies)")
        ax.set_xlabel("true effect (sd of paired differences)")
        ax.legend(loc="lower right")
    return ax


def _row(rate: Rate | TrialsRate) -> str:
    named = quantity(rate.metric).short if isinstance(rate, TrialsRate) else rate.noise
    return f"{named}, {rate.seeds} seeds, {rate.arms} arms"
