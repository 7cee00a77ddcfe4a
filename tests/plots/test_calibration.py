"""Figures of the calibration show every rate."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dsv2.plots.calibration import false_positive_rates, power_by_effect
from dsv2.statistics.calibration import Rate, from_trials, power
from dsv2.statistics.paired import POWER, detectable_in_sd
from tests.references.figures import TITLE, assert_readable
from tests.references.trials import aa


def rates_by_effect() -> list[tuple[float, Rate]]:
    return [
        (times * detectable_in_sd(n, 0.04), power("normal", n, 1, studies=300, times=times))
        for n in (3, 5)
        for times in (0.5, 1.0)
    ]


def rate(low: float, high: float) -> Rate:
    return Rate("false verdict, equal arms", "normal", "3", 2, 5, 100, (low + high) / 2, low, high, 0.05)


def test_every_figure_is_whole_and_readable() -> None:
    for ax in (
        false_positive_rates([rate(0.01, 0.06), rate(0.1, 0.2)], title=TITLE),
        power_by_effect(rates_by_effect(), title=TITLE),
    ):
        assert isinstance(ax.figure, Figure)
        assert_readable(ax.figure)


def test_rates_of_real_trials_are_named_by_metric() -> None:
    one, other = "val/loss", "routing/max_violation"
    trials = [from_trials(aa(), metrics, 3, 2, 50) for metrics in ([one, other], [one], [other])]
    ax = false_positive_rates(trials)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [
        "all metrics, 3 seeds, 2 contrasts",
        "validation loss, 3 seeds, 1 contrast",
        "expert violation, 3 seeds, 1 contrast",
    ]


def test_a_broken_promise_is_filled() -> None:
    ax = false_positive_rates([rate(0.01, 0.06), rate(0.1, 0.2)])
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [True, False]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["normal, 3 seeds, 2 contrasts"] * 2


def test_power_is_drawn_beside_what_is_stated() -> None:
    by_effect = rates_by_effect()
    ax = power_by_effect(by_effect)
    dots = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    assert [line.get_ydata()[0] for line in dots] == [rate.rate for _, rate in by_effect]
    curves = [line for line in ax.get_lines() if len(np.asarray(line.get_xdata())) == 120]
    for n, curve in zip((3, 5), curves, strict=True):
        stated = np.interp(detectable_in_sd(n, 0.04), np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata()))
        assert abs(stated - POWER) < 0.01


def test_a_callers_axes_get_the_title() -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert false_positive_rates([rate(0.01, 0.06)], title="Errors", ax=left) is left
    assert power_by_effect(rates_by_effect(), title="Power", ax=right) is right
    assert [ax.get_title(loc="left") or ax.get_title() for ax in (left, right)] == ["Errors", "Power"]
