"""The figure of a metric over the learning rate draws what was measured, with a ring at what was chosen."""

import numpy as np
import pandas as pd
import pytest

from dsv2 import plots
from tests.references.figures import TITLE, assert_readable, overlapping_ticks

RATES = [0.00075, 0.0015, 0.003, 0.006]


def table(*arms: str, seeds: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm, "rate": rate, "value": 5 + i + abs(j - 1) / 10 + seed / 100}
            for i, arm in enumerate(arms)
            for j, rate in enumerate(RATES)
            for seed in range(seeds)
        ]
    )


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_is_whole_and_readable(seeds: int) -> None:
    arms = ["small_mha", "small_mla", "large_mha", "large_mla"]
    ax = plots.metric_over_lr(table(*arms, seeds=seeds), chosen=dict.fromkeys(arms, 0.0015), title=TITLE)
    assert_readable(ax.figure)
    assert not overlapping_ticks(ax.figure)


def test_lines_are_means_and_rings_lie_on_them() -> None:
    ax = plots.metric_over_lr(table("mha", "mla"), arms=["mla", "mha"], chosen={"mha": 0.0015, "mla": 0.006})
    lines = {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    assert list(lines) == ["mla", "mha"]
    np.testing.assert_allclose(lines["mha"].get_xdata(), RATES)
    np.testing.assert_allclose(lines["mha"].get_ydata(), [5.11, 5.01, 5.11, 5.21])
    rings = [line for line in ax.lines if line.get_markersize() == 9]
    found = sorted((float(ring.get_xdata()[0]), float(ring.get_ydata()[0])) for ring in rings)
    np.testing.assert_allclose(found, [(0.0015, 5.01), (0.006, 6.21)])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.00075", "0.0015", "0.003", "0.006"]
    assert ax.get_ylabel() == "validation loss (nats/token)"


def test_without_a_choice_there_is_no_ring() -> None:
    ax = plots.metric_over_lr(table("mha"))
    assert not [line for line in ax.lines if line.get_markersize() == 9]
