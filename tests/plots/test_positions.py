"""The figure of loss over position draws what the trials measured."""

import numpy as np
import pandas as pd
import pytest

from dsv2 import plots
from tests.references.figures import TITLE, assert_readable, overlapping_ticks, seen

ENDS = [64 * k for k in range(1, 17)]


def trials(*arms: str, seeds: int = 3) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed} | {f"bench/loss_at_{end}": 4 + 0.1 * i + seed / 10 + end / 1e4 for end in ENDS}
        for i, arm in enumerate(arms)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_figure_is_whole_and_readable(seeds: int) -> None:
    arms = ["none", "interpolation", "ntk", "yarn", "none_tuned", "interpolation_tuned", "ntk_tuned", "yarn_tuned"]
    families = {"none": arms[:4], "none_tuned": arms[4:]}
    for groups in (families, None):
        figure = plots.loss_over_position(trials(*arms, seeds=seeds), 128, families=groups, title=TITLE)
        assert_readable(figure)
        assert not overlapping_ticks(figure)


def test_lines_are_means_over_seeds_at_each_position() -> None:
    figure = plots.loss_over_position(trials("none", "yarn", "other"), 128, families={"none": ["none", "yarn"]})
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}
    assert list(lines) == ["none", "yarn"]
    np.testing.assert_allclose(lines["yarn"].get_xdata(), ENDS)
    np.testing.assert_allclose(lines["yarn"].get_ydata(), [4.2 + end / 1e4 for end in ENDS])
    assert [line.get_xdata()[0] for line in seen(ax) if line not in lines.values()] == [128]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["64", "128", "256", "512", "1,024"]


def test_positions_are_in_order_whatever_that_of_the_columns() -> None:
    table = trials("none")
    figure = plots.loss_over_position(table[["arm", "seed", *sorted(table.columns[2:])]], 128)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "none")
    assert list(line.get_xdata()) == ENDS


def test_trials_without_the_benchmark_have_no_such_figure() -> None:
    with pytest.raises(ValueError, match="results: no loss at positions; run with benchmarks=positions"):
        plots.loss_over_position(trials("none")[["arm", "seed"]], 128)
