"""Figures of a study over training and at its end. See `plots` for style and shared arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv2.metrics import quantity
from dsv2.plots.hover import evenly, say
from dsv2.plots.style import (
    BETTER,
    COLOURS,
    PAGE,
    PANEL_TITLE,
    REFERENCE,
    ZERO,
    arm_styles,
    arms_of,
    curves,
    difference_label,
    draw_curves,
    even_columns,
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
from dsv2.statistics.paired import t_interval
from dsv2.statistics.verdicts import Effect, difference_text

IMBALANCE = [f"routing/{name}_violation" for name in ("max", "device_max", "received_max")] + [
    f"routing/{name}" for name in ("dead_experts", "overflow", "drop_rate")
]

LONG = 8  # points of a curve whose first tenth is left out
MOST_BARS = 8  # intervals of one arm over training


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

    The axis of a long curve begins where the fall of its first tenth is over, so that arms can be told apart. `train`
    adds the training loss as faint lines.
    """
    styles = arm_styles(arms or arms_of(metrics))
    own, ax = ax is None, single(_height(styles), title, ax)
    if train:
        for arm, curve in curves(metrics, "train/loss", styles):
            ax.plot(curve.index, curve["mean"], color=styles[arm]["color"], linewidth=0.6, alpha=0.35)
    drawn = curves(metrics, metric, styles)
    draw_curves(ax, drawn, styles)
    _leave_out_the_fall(ax, [curve for _, curve in drawn])
    tokens_axis(ax)
    ax.set_ylabel(quantity(metric).label)
    _legend(ax, own)
    return ax


def _leave_out_the_fall(ax: Axes, drawn: Sequence[pd.DataFrame]) -> None:
    """Limit the vertical axis to what long curves do after the first tenth of their length."""
    long = [curve[curve.index >= curve.index.max() / 10] for curve in drawn if len(curve) >= LONG]
    if long:
        low, high = (min(curve["min"].min() for curve in long), max(curve["max"].max() for curve in long))
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


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
    """Draw arm minus baseline over tokens, paired by seed: mean over seeds with 95% t intervals.

    Intervals of different arms stand beside one another, at up to `MOST_BARS` places.
    """
    styles = arm_styles(arms or arms_of(metrics))
    logged = metrics[metrics["metric"] == metric]
    reference = logged[logged["arm"] == baseline].set_index(["seed", "tokens"])["value"].rename("reference")
    paired = logged[logged["arm"] != baseline].join(reference, on=["seed", "tokens"], how="inner")
    paired = paired.assign(value=paired["value"] - paired["reference"])
    own, ax = ax is None, single(_height(styles), title, ax)
    ax.axhline(0, **ZERO)
    drawn = [arm for arm in styles if arm in set(paired["arm"])]
    for number, arm in enumerate(drawn):
        _draw_bars(ax, paired[paired["arm"] == arm], arm, styles[arm], number - (len(drawn) - 1) / 2)
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
        ax.plot(of_seed.to_numpy(), rows, color="0.8", linewidth=0.6, zorder=1)
    for row, arm in zip(rows, shown, strict=True):
        values = table[arm].dropna()
        look = styles[arm] | {"linestyle": "none", "markersize": 5, "markeredgecolor": styles[arm]["color"]}
        (points,) = ax.plot(values, np.full(len(values), row), **look)
        say(points, [f"{arm}, seed {seed}: {value:.4g}" for seed, value in values.items()])
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
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw each arm minus its baseline with its interval, a panel per metric, those with verdicts first.

    Verdicts are blue with their margin shaded; their markers are those of `VERDICTS`. Exploratory effects are thin and
    grey.
    """
    pairs = list(dict.fromkeys(effect[:2] for effect in (*verdicts, *effects)))
    if arms:
        pairs.sort(key=lambda pair: list(arms).index(pair[0]))
    compared = [arm for arm, _ in pairs]
    names = [f"{arm} - {other}" if compared.count(arm) > 1 else arm for arm, other in pairs]
    metrics = list(dict.fromkeys(effect.metric for effect in (*verdicts, *effects)))
    columns = even_columns(len(metrics))
    height, width = 0.17 * len(pairs) + 0.95, PAGE if columns > 2 else None
    figure, axes = panels(len(metrics), columns=columns, height=height, title=title, sharey=True, width=width)
    for place, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        ax.axvline(0, **ZERO)
        for effect in (effect for effect in verdicts if effect.metric == metric):
            _draw_verdict(ax, pairs.index(effect[:2]), effect)
        for effect in (effect for effect in effects if effect.metric == metric):
            row = pairs.index(effect[:2])
            faint_interval(ax, row, effect.low, effect.mean, effect.high, text=_told(effect))
        panel_title(ax, quantity(metric).label, width=PANEL_TITLE if columns < 4 else PANEL_TITLE * 3 // 4)
        ax.xaxis.set_major_locator(MaxNLocator(4 if columns < 4 else 3))
        ax.grid(False, axis="y")
        ax.tick_params(axis="y", labelleft=place % columns == 0)
        ax.set_xlabel(BETTER.get((directions or {}).get(metric, ""), ""), fontsize=7)
    rows_axis(axes[0], names)
    _explain(axes, verdicts, effects)
    return figure


VERDICTS = {  # verdict -> marker, and whether it is filled
    "better": ("o", True),
    "worse": ("X", True),
    "equivalent": ("s", True),
    "identical": ("|", True),
    "undecided": ("o", False),
}


def _explain(axes: Sequence[Axes], verdicts: Sequence[Effect], effects: Sequence[Effect]) -> None:
    """Add a legend of the markers that there are."""
    words = {effect.word for effect in verdicts}
    for word, (marker, filled) in VERDICTS.items():
        if word in words:
            face = COLOURS[0] if filled else "white"
            look: Any = {"color": COLOURS[0], "linewidth": 1.4, "markerfacecolor": face, "markersize": 4.5}
            axes[0].plot([], [], marker=marker, label=word, **look)
    if effects:
        grey: Any = {"color": "0.55", "linewidth": 0.8, "markerfacecolor": "white", "markersize": 3}
        axes[0].plot([], [], marker="o", label="exploratory", **grey)
    legend_below(axes, 6)


def _draw_verdict(ax: Axes, row: int, effect: Effect) -> None:
    if effect.margin > 0:
        ax.fill_betweenx([row - 0.42, row + 0.42], -effect.margin, effect.margin, color="0.88", linewidth=0, zorder=0)
    marker, filled = VERDICTS.get(effect.word, ("o", False))
    interval(ax, row, effect.low, effect.mean, effect.high, filled=filled, marker=marker, text=_told(effect))


def _told(effect: Effect) -> str:
    """Return what an effect says when it is pointed at."""
    size = difference_text(effect.mean, effect.low, effect.high)
    return f"{effect.arm} - {effect.baseline}, {effect.n} seeds\n{size}, {effect.word or 'exploratory'}"


def _draw_bars(ax: Axes, rows: pd.DataFrame, arm: str, style: dict[str, Any], place: float) -> None:
    """Draw the mean difference over tokens and its intervals; `place` is the arm's, 0 in the middle of all."""
    each = {tokens: group["value"].to_numpy(dtype=float) for tokens, group in rows.groupby("tokens")}
    at, means = np.array(list(each)), np.array([values.mean() for values in each.values()])
    ax.plot(at, means, **(style | {"marker": "none"}), label="_nolegend_")
    ends = [t_interval(values) if len(values) > 1 else (values[0], values[0]) for values in each.values()]
    shown = evenly(len(at), MOST_BARS)
    apart = np.ptp(at) / max(len(shown) - 1, 1) / 12 if len(at) > 1 else 1.0
    moved = at[shown] + place * apart
    for x, index in zip(moved, shown, strict=True):
        ax.plot([x, x], ends[index], color=style["color"], linewidth=1.0, label="_nolegend_")
    (points,) = ax.plot(moved, means[shown], label=arm, **(style | {"linestyle": "none"}))
    told = [difference_text(means[i], *ends[i]) for i in shown]
    say(points, [f"{arm} at {at[i]:,} tokens\n{size}" for i, size in zip(shown, told, strict=True)])


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
