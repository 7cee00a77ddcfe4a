"""Figures of alignment: what answers are like over training. See `plots` for style and shared arguments."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from dsv2.metrics import quantity
from dsv2.plots.style import (
    arm_styles,
    arms_of,
    curves,
    draw_curves,
    legend_below,
    legend_columns,
    legend_height,
    panel_title,
    panels,
    styled,
)

ANSWERS = (
    "grpo/reward_correct",
    "grpo/reward_reasoning",
    "grpo/reward_helpful",
    "grpo/reward_safety",
    "grpo/reward_safe",
    "grpo/reward_rule",
    "grpo/kl",
    "grpo/zero_variance",
    "grpo/length",
)
ALWAYS = ("grpo/reward_correct", "grpo/kl", "grpo/length")


@styled()
def answers_over_training(
    metrics: pd.DataFrame,
    *,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw rewards, divergence and length of the answers over steps, a panel per metric: mean and range over seeds.

    What a reward model gives stands beside the verifier's verdicts, so that a policy which pleases one and not the
    other is seen. What is the same in every row is left out, except for verdicts, divergence and length.
    """
    logged = metrics.groupby("metric")["value"].agg(["min", "max"])
    varied = set(logged.index[logged["min"] < logged["max"]])
    shown = [metric for metric in ANSWERS if metric in varied or (metric in ALWAYS and metric in logged.index)]
    if not shown:
        raise ValueError("metrics: no answers were drawn in training; only runs with objective=grpo draw some")
    styles = arm_styles(arms or arms_of(metrics))
    by_step = metrics.assign(tokens=metrics["step"])  # whose tokens are those of whole sequences
    columns = 4 if len(shown) > 2 else legend_columns(styles)
    margin = 0.3 + legend_height(len(styles), columns)
    figure, axes = panels(len(shown), columns=3, height=1.55, margin=margin, title=title)
    for ax, metric in zip(axes, shown, strict=True):
        draw_curves(ax, curves(by_step, metric, styles), styles)
        panel_title(ax, quantity(metric).label)
        ax.set_xlabel("step")
    legend_below(axes, columns)
    return figure
