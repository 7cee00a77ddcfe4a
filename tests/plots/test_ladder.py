"""Figures of a ladder draw every run, and what is predicted apart from what was observed."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dsv2.plots.ladder import difference_over_compute, loss_over_compute
from dsv2.statistics.ladder import Ladder, fit_ladder, held_out
from tests.references.figures import TITLE, assert_readable
from tests.references.ladders import ARMS, simulate


def ladder(runs: pd.DataFrame) -> Ladder:
    return fit_ladder(runs, arms=ARMS, baseline="mha", resamples=200)


def test_every_figure_is_whole_and_readable() -> None:
    runs = simulate(rungs=5, seeds=3)
    below, told = ladder(runs[runs["scale"] != "paper"]), held_out(runs, scale="paper", arms=ARMS, baseline="mha")
    for ax in (
        loss_over_compute(runs, below, foretold=told, title=TITLE),
        difference_over_compute(runs, below, "mha", foretold=told, title=TITLE),
    ):
        assert isinstance(ax.figure, Figure)
        assert_readable(ax.figure)


def test_figures_draw_every_run_and_dash_what_is_predicted() -> None:
    runs = simulate(rungs=5, seeds=3)
    below, told = ladder(runs[runs["scale"] != "paper"]), held_out(runs, scale="paper", arms=ARMS, baseline="mha")
    ax = loss_over_compute(runs, below, foretold=told)
    points = [line for line in ax.get_lines() if line.get_linestyle() == "None" and len(line.get_xdata()) == 5 * 3]
    assert len(points) == len(ARMS)
    dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert [max(line.get_xdata()) for line in dashed] == pytest.approx([1e13 * 8**4] * 2)
    assert not [line for line in loss_over_compute(runs, ladder(runs)).get_lines() if line.get_linestyle() == "--"]
    ax = difference_over_compute(runs, below, "mha", foretold=told)
    means = [line.get_ydata()[0] for line in ax.get_lines() if line.get_marker() == "s" and len(line.get_xdata()) == 1]
    wide = runs.pivot(index=["flops", "seed"], columns="arm", values="loss")
    wanted = (wide["mla"] - wide["mha"]).groupby("flops").mean()
    assert means == pytest.approx(list(wanted))


def test_without_a_ladder_there_are_points_and_no_curves() -> None:
    runs = simulate(rungs=2, seeds=3)
    ax = loss_over_compute(runs, None, title=TITLE)
    assert [len(line.get_xdata()) for line in ax.get_lines()] == [6, 0, 6, 0]
    assert {line.get_linestyle() for line in ax.get_lines()} == {"None"}
    other = difference_over_compute(runs, None, "mha", title=TITLE)
    assert max(len(line.get_xdata()) for line in other.get_lines()) == 2  # intervals and the line at zero
    for drawn in (ax, other):
        assert isinstance(drawn.figure, Figure)
        assert_readable(drawn.figure)


def test_differences_at_equal_compute_stand_beside_each_other() -> None:
    runs = simulate(seeds=3)
    runs = pd.concat([runs, runs[runs["arm"] == "mla"].assign(arm="other")])
    ax = difference_over_compute(runs, fit_ladder(runs, arms=[*ARMS, "other"], baseline="mha"), "mha")
    places = {
        marker: [
            line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == marker and len(line.get_xdata()) == 1
        ]
        for marker in "sD"
    }
    flops = sorted(set(runs[runs["arm"] == "mla"]["flops"]))
    assert len(places["s"]) == len(flops)
    np.testing.assert_allclose(np.sqrt(np.multiply(places["s"], places["D"])), flops)
    np.testing.assert_allclose(np.divide(places["D"], places["s"]), 1.05)


def test_a_callers_axes_get_the_title() -> None:
    _, (left, right) = plt.subplots(1, 2)
    runs = simulate(seeds=3)
    loss_over_compute(runs, ladder(runs), title="Loss", ax=left)
    difference_over_compute(runs, ladder(runs), "mha", title="Difference", ax=right)
    assert [ax.get_title(loc="left") for ax in (left, right)] == ["Loss", "Difference"]
    assert right.get_ylabel() == "validation loss,\narm - mha (nats/token)"
