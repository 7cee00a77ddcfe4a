"""Figures of a study over training and at its end. See `plots` for style and shared arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv2.metrics import quantity
from dsv2.plots.style import (
    BETTER,
    REFERENCE,
    ZERO,
    arm_styles,
    arms_of,
    curves,
    difference_label,
    draw_curves,
    faint_interval,
    floor_line,
    handles,
    interval,
    legend_below,
    legend_columns,
    legend_height,
    panel_title,
    panels,
    rows_axis,
    single,
    styled,
    tick_names,
    tokens_axis,
)
from dsv2.statistics.verdicts import Effect

IMBALANCE = [f"routing/{name}_violation" for name in ("max", "device_max", "received_max")] + [
    f"routing/{name}" for name in ("dead_experts", "overflow", "drop_rate")
]


# ---- over training ---------------------------------------------------------------------------------------------------


@styled()
def loss_over_tokens(
    metrics: pd.DataFrame,
    metric: str = "val/loss",
    *,
    arms: Sequence[str] | None = None,
    train: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric over tokens: mean over seeds, with the range from the lowest to the highest seed.

    `train` adds the training loss as faint lines.
    """
    styles = arm_styles(arms or arms_of(metrics))
    own, ax = ax is None, single(_height(styles), title, ax)
    if train:
        for arm, curve in curves(metrics, "train/loss", styles):
            ax.plot(curve.index, curve["mean"], color=styles[arm]["color"], linewidth=0.6, alpha=0.35)
    draw_curves(ax, curves(metrics, metric, styles), styles)
    tokens_axis(ax)
    ax.set_ylabel(quantity(metric).label)
    _legend(ax, own)
    return ax


@styled()
def difference_over_tokens(
    metrics: pd.DataFrame,
    baseline: str,
    metric: str = "val/loss",
    *,
    arms: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw arm minus baseline over tokens, paired by seed: mean and range over seeds."""
    styles = arm_styles(arms or arms_of(metrics))
    logged = metrics[metrics["metric"] == metric]
    reference = logged[logged["arm"] == baseline].set_index(["seed", "tokens"])["value"].rename("reference")
    paired = logged[logged["arm"] != baseline].join(reference, on=["seed", "tokens"], how="inner")
    paired = paired.assign(value=paired["value"] - paired["reference"])
    own, ax = ax is None, single(_height(styles), title, ax)
    ax.axhline(0, **ZERO)
    draw_curves(ax, curves(paired, metric, styles), styles)
    tokens_axis(ax)
    ax.set_ylabel(difference_label(metric, baseline))
    _legend(ax, own)
    return ax


@styled()
def imbalance_over_training(
    metrics: pd.DataFrame,
    *,
    floor: Mapping[str, float] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the balance of experts and devices over tokens, a panel per metric.

    `floor` holds a random router's values, dashed. Metrics that are not logged are left out, as is a drop rate of 0.
    """
    logged = metrics.groupby("metric")["value"].max()
    shown = [m for m in IMBALANCE if m in logged and not (m == "routing/drop_rate" and logged[m] == 0)]
    if not shown:
        raise ValueError("metrics: no routing metric was logged; dense models have none")
    styles = arm_styles(arms or arms_of(metrics))
    figure, axes = panels(len(shown), columns=3, height=1.55, title=title)
    for ax, metric in zip(axes, shown, strict=True):
        draw_curves(ax, curves(metrics, metric, styles), styles)
        floor_line(ax, floor, metric)
        panel_title(ax, quantity(metric).label)
        ax.set_ylim(bottom=0)
        tokens_axis(ax)
    legend_below(axes, 4)
    return figure


# ---- at the end ------------------------------------------------------------------------------------------------------


@styled()
def metric_by_arm(
    results: pd.DataFrame,
    metric: str = "val/loss",
    *,
    floor: float | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a point per seed and a bar at the mean; grey lines connect the points of one seed.

    `floor` is the value of a random router.
    """
    order = list(arms or arms_of(results))
    table = results.pivot(index="seed", columns="arm", values=metric).reindex(columns=order).dropna(axis=1, how="all")
    styles, shown = arm_styles(order), list(table.columns)
    ax = single(0.28 * len(shown) + 0.75, title, ax)
    rows = np.arange(len(shown))
    for _, of_seed in table.iterrows():
        ax.plot(of_seed.to_numpy(), rows, color="0.87", linewidth=0.6, zorder=1)
    for row, arm in zip(rows, shown, strict=True):
        values = table[arm].dropna()
        ax.plot(values, np.full(len(values), row), **(styles[arm] | {"linestyle": "none"}))
        ax.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color="black", linewidth=1.4)
    if floor is not None:
        ax.axvline(floor, **REFERENCE)
        above = ax.get_xaxis_transform()
        ax.text(floor, 1.0, " random router", transform=above, ha="left", va="bottom", fontsize=7)
    tick_names(ax.yaxis, rows, shown)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel(quantity(metric).label)
    return ax


@styled()
def forest(
    effects: Sequence[Effect],
    *,
    verdicts: Sequence[Effect] = (),
    directions: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw each arm minus its baseline with its interval: a panel per metric of the verdicts, then of other effects.

    Verdicts are blue with their margin shaded; markers are filled if better or worse, squares if equivalent, hollow
    otherwise. Exploratory effects are thin and grey.
    """
    pairs = list(dict.fromkeys(effect[:2] for effect in (*verdicts, *effects)))
    arms = [arm for arm, _ in pairs]
    names = [f"{arm} - {other}" if arms.count(arm) > 1 else arm for arm, other in pairs]
    groups = [(rows, decided) for decided, of in ((True, verdicts), (False, effects)) for rows in _by_metric(of)]
    figure, axes = panels(len(groups), columns=3, height=0.17 * len(pairs) + 0.95, title=title, sharey=True)
    for ax, (rows, decided) in zip(axes, groups, strict=True):
        metric = rows[0].metric
        ax.axvline(0, **ZERO)
        for effect in rows:
            if decided:
                _draw_verdict(ax, pairs.index(effect[:2]), effect)
            else:
                faint_interval(ax, pairs.index(effect[:2]), effect.low, effect.mean, effect.high)
        panel_title(ax, quantity(metric).label)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.grid(False, axis="y")
        ax.set_xlabel(BETTER.get((directions or {}).get(metric, ""), "") if decided else "exploratory", fontsize=7)
    rows_axis(axes[0], names)
    return figure


def _by_metric(effects: Sequence[Effect]) -> list[list[Effect]]:
    metrics = dict.fromkeys(effect.metric for effect in effects)
    return [[effect for effect in effects if effect.metric == metric] for metric in metrics]


def _draw_verdict(ax: Axes, row: int, effect: Effect) -> None:
    if effect.margin > 0:
        ax.fill_betweenx([row - 0.42, row + 0.42], -effect.margin, effect.margin, color="0.88", linewidth=0, zorder=0)
    marker = "s" if effect.word == "equivalent" else "o"
    filled = effect.word in ("better", "worse")
    interval(ax, row, effect.low, effect.mean, effect.high, filled=filled, marker=marker)


# ---- shared ----------------------------------------------------------------------------------------------------------


def _height(arms: Mapping[str, Any]) -> float:
    return 2.2 + legend_height(len(arms), legend_columns(arms))


def _legend(ax: Axes, own: bool) -> None:
    """Put the legend below the figure if it is our own, else below the caller's `ax`."""
    lines, labels = handles([ax])
    columns = legend_columns(labels)
    if own:
        legend_below([ax], columns)
    else:
        ax.legend(lines, labels, loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=columns)
