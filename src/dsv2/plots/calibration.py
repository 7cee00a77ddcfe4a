"""Figures of calibration: false positive rates against the nominal 5%, and simulated against stated power."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dsv2.metrics import quantity
from dsv2.plots.style import REFERENCE, arm_styles, interval, percent, rows_axis, single, styled
from dsv2.statistics.calibration import Rate, TrialsRate
from dsv2.statistics.paired import ALPHA, POWER, detectable_in_sd, paired_power
from dsv2.statistics.spending import error_of_interval


@styled()
def false_positive_rates(
    rates: Sequence[Rate | TrialsRate], *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw each rate with its 95% interval against the nominal 5%: by metric for real trials, else by noise.

    Markers are filled if the whole interval lies above 5%.
    """
    ax = single(0.19 * len(rates) + 0.75, title, ax)
    ax.axvline(ALPHA, **REFERENCE)
    for row, rate in enumerate(rates):
        text = f"{_row(rate)}\n{rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%})"
        interval(ax, row, rate.low, rate.rate, rate.high, filled=rate.low > ALPHA, text=text)
    rows_axis(ax, [_row(rate) for rate in rates])
    ax.set_xlim(left=0)
    percent(ax.xaxis)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=2))
    ax.grid(False, axis="y")
    ax.set_xlabel("studies with a\nfalse verdict")
    return ax


@styled()
def power_by_effect(rates: Sequence[tuple[float, Rate]], *, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw simulated power over the effect in standard deviations of the paired differences, a colour per seed count.

    `rates` pairs each effect with its rate, all for one number of contrasts. Lines are the stated power at the first
    look; vertical lines mark the effect of 80% power.
    """
    (contrasts,) = {rate.contrasts for _, rate in rates}
    top = max(effect for effect, _ in rates)
    seeds = sorted({int(rate.seeds) for _, rate in rates})
    labels = {n: f"{n} seeds" for n in seeds}
    styles = arm_styles(list(labels.values()))
    ax = single(2.4, title, ax)
    ax.axhline(POWER, **REFERENCE)
    effects = np.linspace(0, top, 120)
    for n in seeds:
        style, level = styles[labels[n]], error_of_interval([frozenset(range(n))], n, contrasts)
        ax.plot(effects, [paired_power(n, effect, level) for effect in effects], color=style["color"])
        ax.plot([detectable_in_sd(n, level)] * 2, [0, POWER], color=style["color"], linewidth=0.6, alpha=0.6)
        for effect, rate in rates:
            if int(rate.seeds) == n:
                ax.plot([effect] * 2, [rate.low, rate.high], color=style["color"], linewidth=1)
                ax.plot(effect, rate.rate, **(style | {"linestyle": "none"}))
        ax.plot([], [], label=labels[n], **(style | {"linestyle": "-"}))
    ax.set_ylim(0, 1.02)
    ax.set_xlim(0, top * 1.03)
    percent(ax.yaxis)
    ax.set_ylabel("effect detected (share of studies)")
    ax.set_xlabel("true effect (sd of paired differences)")
    ax.legend(loc="lower right")
    return ax


def _row(rate: Rate | TrialsRate) -> str:
    if isinstance(rate, TrialsRate):
        name = quantity(rate.metric).name if rate.metric else "all metrics"
    else:
        name = rate.noise
    return f"{name}, {rate.seeds} seeds, {rate.contrasts} contrast{'s' if rate.contrasts > 1 else ''}"
