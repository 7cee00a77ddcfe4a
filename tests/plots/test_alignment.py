"""The figure of answers over training draws what was logged of them, by step."""

import numpy as np
import pandas as pd
import pytest

from dsv2 import plots
from dsv2.plots.alignment import ANSWERS
from tests.references.figures import TITLE, assert_readable, overlapping_ticks


def logged(*arms: str, metrics: tuple[str, ...] = ANSWERS, seeds: int = 3) -> pd.DataFrame:
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "step": step,
            "tokens": step * 8192,
            "metric": metric,
            "value": float(place + seed + step),
        }
        for place, arm in enumerate(arms)
        for seed in range(seeds)
        for metric in metrics
        for step in range(10, 70, 10)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("metrics", [ANSWERS, ANSWERS[:1], ANSWERS[:4]])
def test_the_figure_is_whole_and_readable(metrics: tuple[str, ...]) -> None:
    arms = ["sft", "online", "stale1", "stale4", "stale16", "offline", "grpo_pair", "grpo_point"]
    figure = plots.answers_over_training(logged(*arms[1:], metrics=metrics), arms=arms, title=TITLE)
    assert_readable(figure)
    assert not overlapping_ticks(figure)


def test_lines_are_means_over_seeds_at_each_step() -> None:
    table = logged("online", "offline", metrics=("grpo/reward_correct", "grpo/reward_safe"))
    table.loc[table["metric"] == "grpo/reward_safe", "value"] = 1.0
    figure = plots.answers_over_training(table)
    (ax,) = [ax for ax in figure.axes if ax.lines]
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["offline"].get_xdata(), range(10, 70, 10))
    np.testing.assert_allclose(lines["offline"].get_ydata(), [2 + step for step in range(10, 70, 10)])


def test_runs_without_answers_have_no_such_figure() -> None:
    with pytest.raises(ValueError, match="metrics: no answers were drawn in training; only runs with objective=grpo"):
        plots.answers_over_training(logged("sft", metrics=("val/loss",)))
