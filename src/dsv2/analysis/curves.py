"""Curves over training, mean and range over seeds: what the figures of a study have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator


def curves(
    metrics: pd.DataFrame, metric: str, arms: Sequence[str] | Mapping[str, Any]
) -> list[tuple[str, pd.DataFrame]]:
    """(arm, table of mean, min, max by tokens) for the arms that logged it."""
    found = metrics[metrics["metric"] == metric]
    logged = set(found["arm"])
    return [
        (arm, found[found["arm"] == arm].groupby("tokens")["value"].agg(["mean", "min", "max"]))
        for arm in arms
        if arm in logged
    ]


def draw_curves(ax: Axes, curves: list[tuple[str, pd.DataFrame]], styles: Mapping[str, dict[str, Any]]) -> None:
    """A line and the band of its seeds for each arm; the curves' index is the horizontal axis."""
    alpha = 0.15 if len(curves) <= 3 else 0.08  # many bands on top of each other turn to mud
    for i, (arm, curve) in enumerate(curves):
        every = max(len(curve) // 5, 1)
        ax.plot(
            curve.index, curve["mean"], label=arm, markevery=(i * every // max(len(curves), 1), every), **styles[arm]
        )
        ax.fill_between(curve.index, curve["min"], curve["max"], color=styles[arm]["color"], alpha=alpha, linewidth=0)


def tokens_axis(ax: Axes) -> None:
    """Training tokens, with k, M and G for their thousands."""
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("training tokens")


def handles(axes: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Handles and labels of one legend for all the axes, each label once."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)
