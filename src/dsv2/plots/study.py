"""Figures of a study: long tables in, Axes (or a Figure, where there are panels) out, one function a figure.

One look for all: 7 points at least at the size of a column, colours that the colour-blind tell apart, and a marker and
dash of its own for each arm, so that a black-and-white print still reads. `arms` fixes order and style; give the
study's whole list even to plot a part of it. `title` states the finding.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv2.plots.style import (
    STYLE,
    arm_styles,
    arms_of,
    curves,
    draw_curves,
    entitle,
    handles,
    headline,
    panels,
    quantity,
    single,
    tokens_axis,
)

PANEL_TITLE = 32  # characters of 7 points that fit above one of three panels
IMBALANCE = [f"routing/{name}_violation" for name in ("max", "device_max", "received_max")] + [
    f"routing/{name}" for name in ("dead_experts", "overflow", "drop_rate")
]


# ---- over training ---------------------------------------------------------------------------------------------------


def loss_over_tokens(
    metrics: pd.DataFrame,
    metric: str = "val/loss",
    *,
    arms: Sequence[str] | None = None,
    train: bool = False,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean over seeds with the range from lowest to highest seed; `train` adds the training loss, faint."""
    styles = arm_styles(arms or arms_of(metrics))
    with plt.rc_context(STYLE):
        own, ax = ax is None, ax or single(2.2 + 0.17 * -(-len(styles) // _legend_columns(styles)), title)
        if train:
            for arm, curve in curves(metrics, "train/loss", styles):
                ax.plot(curve.index, curve["mean"], color=styles[arm]["color"], linewidth=0.6, alpha=0.35)
        draw_curves(ax, curves(metrics, metric, styles), styles)
        tokens_axis(ax)
        ax.set_ylabel(quantity(metric).label)
        _legend_below(ax, own)
        entitle(ax, title, own)
    return ax


def difference_over_tokens(
    metrics: pd.DataFrame,
    baseline: str,
    metric: str = "val/loss",
    *,
    arms: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Arm minus baseline, paired by seed: mean and range over seeds. Shows what overlapping curves hide."""
    styles = arm_styles(arms or arms_of(metrics))
    found = metrics[metrics["metric"] == metric]
    reference = found[found["arm"] == baseline].set_index(["seed", "tokens"])["value"].rename("reference")
    paired = found[found["arm"] != baseline].join(reference, on=["seed", "tokens"], how="inner")
    paired = paired.assign(value=paired["value"] - paired["reference"])
    with plt.rc_context(STYLE):
        own, ax = ax is None, ax or single(2.2 + 0.17 * -(-len(styles) // _legend_columns(styles)), title)
        ax.axhline(0, color="0.3", linewidth=0.8)
        draw_curves(ax, curves(paired, metric, styles), styles)
        tokens_axis(ax)
        name, _, unit = quantity(metric).label.partition(" (")
        ax.set_ylabel(f"{name},\narm - {baseline}" + (f" ({unit}" if unit else ""))
        _legend_below(ax, own)
        entitle(ax, title, own)
    return ax


def imbalance_over_training(
    metrics: pd.DataFrame,
    *,
    floor: Mapping[str, float] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Balance of experts and devices over tokens, a panel a metric; `floor` is a random router's, dashed.

    Metrics that are not logged have no panel, and neither has the drop rate where nothing is ever dropped.
    """
    logged = metrics.groupby("metric")["value"].max()
    shown = [m for m in IMBALANCE if m in logged and not (m == "routing/drop_rate" and logged[m] == 0)]
    if not shown:
        raise ValueError("metrics: none of the routing metrics is there; a dense study has no imbalance to draw")
    styles = arm_styles(arms or arms_of(metrics))
    with plt.rc_context(STYLE):
        figure, axes = panels(len(shown), columns=3, height=1.55)
        for ax, metric in zip(axes, shown, strict=True):
            draw_curves(ax, curves(metrics, metric, styles), styles)
            if floor and metric in floor:
                ax.axhline(floor[metric], color="black", linestyle=(0, (4, 2)), linewidth=0.9, label="random router")
            ax.set_title(textwrap.fill(quantity(metric).label, PANEL_TITLE), fontsize=7)
            ax.set_ylim(bottom=0)
            tokens_axis(ax)
        found, labels = handles(axes)
        figure.legend(found, labels, loc="outside lower center", ncols=min(len(labels), 4))
        headline(figure, title)
    return figure


# ---- at the end ------------------------------------------------------------------------------------------------------


def metric_by_arm(
    results: pd.DataFrame,
    metric: str = "val/loss",
    *,
    floor: float | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A point a seed and a bar at the mean; grey lines join the points of one seed. `floor` is a random router's."""
    order = list(arms or arms_of(results))
    table = results.pivot(index="seed", columns="arm", values=metric).reindex(columns=order).dropna(axis=1, how="all")
    styles, shown = arm_styles(order), list(table.columns)
    with plt.rc_context(STYLE):
        own, ax = ax is None, ax or single(0.28 * len(shown) + 0.75, title)
        places = np.arange(len(shown))
        for _, row in table.iterrows():
            ax.plot(row.to_numpy(), places, color="0.87", linewidth=0.6, zorder=1)
        for place, arm in zip(places, shown, strict=True):
            values = table[arm].dropna()
            ax.plot(values, np.full(len(values), place), **(styles[arm] | {"linestyle": "none"}))
            ax.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1.4)
        if floor is not None:
            ax.axvline(floor, color="black", linestyle=(0, (4, 2)), linewidth=0.9)
            where = ax.get_xaxis_transform()
            ax.text(floor, 1.0, " random router", transform=where, ha="left", va="bottom", fontsize=7)
        ax.set_yticks(places, shown)
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.grid(False, axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel(quantity(metric).label)
        entitle(ax, title, own)
    return ax


def forest(
    effects: pd.DataFrame | Sequence[tuple[Any, ...]],
    *,
    margins: Mapping[str, float] | None = None,
    directions: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Each arm minus the baseline with its 95% interval, a panel a metric (`dsv2.statistics.verdicts.Effect` rows).

    Filled where the verdict is better or worse, a square where equivalent, hollow otherwise; the margin is shaded.
    """
    table = pd.DataFrame(effects)
    metrics, arms = list(dict.fromkeys(table["metric"])), list(dict.fromkeys(table["arm"]))
    colour = sns.color_palette("colorblind")[0]
    with plt.rc_context(STYLE):
        figure, axes = panels(len(metrics), columns=3, height=0.17 * len(arms) + 0.85, sharey=True)
        for ax, metric in zip(axes, metrics, strict=True):
            if margin := (margins or {}).get(metric):
                ax.axvspan(-margin, margin, color="0.88", linewidth=0, zorder=0)
            ax.axvline(0, color="0.3", linewidth=0.8)
            for row in table[table["metric"] == metric].itertuples():
                place, decided = arms.index(row.arm), row.word in ("better", "worse")
                ax.plot([row.low, row.high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
                marker, face = ("s" if row.word == "equivalent" else "o"), (colour if decided else "white")
                ax.plot(row.mean, place, marker=marker, color=colour, markerfacecolor=face, markersize=4.5)
            ax.set_title(textwrap.fill(quantity(metric).label, PANEL_TITLE), fontsize=7)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.grid(False, axis="y")
            better = (directions or {}).get(metric)
            ax.set_xlabel({"lower": "← better", "higher": "better →"}.get(better or "", ""), fontsize=7)
        axes[0].set_yticks(range(len(arms)), arms)
        axes[0].set_ylim(len(arms) - 0.5, -0.5)
        headline(figure, title)
    return figure


# ---- shared ----------------------------------------------------------------------------------------------------------


def _legend_below(ax: Axes, own: bool) -> None:
    found, labels = handles([ax])
    columns = _legend_columns(labels)
    if own and isinstance(ax.figure, Figure):
        ax.figure.legend(found, labels, loc="outside lower center", ncols=columns)  # the layout makes room for it
    else:
        ax.legend(found, labels, loc="upper center", bbox_to_anchor=(0.45, -0.24), ncols=columns)


def _legend_columns(labels: Iterable[str]) -> int:
    return 3 if max(map(len, labels), default=0) < 12 else 2
