"""Figures of loss against cost. See `plots` for style and shared arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, NullLocator

from dsv2.accounting.account import Account
from dsv2.metrics import quantity
from dsv2.plots.style import (
    DASHED,
    arm_styles,
    arms_of,
    draw_curves,
    large_numbers,
    legend_below,
    legend_height,
    panels,
    single,
    styled,
)
from dsv2.statistics.budgets import equal_budgets, spent, telling

PUBLISHED = ("name", "active_params", "value")
AXES = {"tokens": "training tokens", "flops": "training FLOPs", "seconds": "training seconds"}


@styled()
def loss_over_budgets(
    metrics: pd.DataFrame,
    accounting: pd.DataFrame,
    *,
    metric: str = "val/loss",
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the metric over tokens, FLOPs and seconds: mean and range over seeds, at the mean cost over seeds.

    FLOPs are left out where all arms take as many per token, and seconds where the speed of arms differs no more than
    that of trials of one arm does (`statistics.budgets.telling`). The dashed line is the largest
    budget that every trial reached; `budgets.loss_at_equal` evaluates curves there.
    """
    styles = arm_styles(arms or arms_of(metrics))
    table = spent(metrics[metrics["arm"].isin(list(styles))], accounting, metric)
    equal = equal_budgets(table)
    by_arm = {
        arm: trials.groupby("tokens").agg(
            tokens=("tokens", "mean"), flops=("flops", "mean"), seconds=("seconds", "mean"),
            mean=("value", "mean"), min=("value", "min"), max=("value", "max"),
        )
        for arm, trials in table.groupby("arm")
    }  # fmt: skip
    legend, shown = legend_height(len(by_arm) + 1, 4), telling(metrics, accounting, metric)
    columns = len(shown)
    figure, axes = panels(columns, columns=columns, height=2.4, margin=legend, title=title, sharey=True)
    for ax, budget in zip(axes, shown, strict=True):
        label = AXES[budget]
        draw_curves(ax, [(arm, by_arm[arm].set_index(budget)) for arm in styles if arm in by_arm], styles)
        dashed: dict[str, Any] = {"color": "0.3", "linestyle": DASHED, "linewidth": 0.8, "zorder": 0}
        ax.axvline(equal[budget], label="reached by every trial", **dashed)
        large_numbers(ax, label, ticks=5 if columns == 1 else 4)
    axes[0].set_ylabel(quantity(metric).label)
    legend_below(axes, {1: 2, 2: 3}.get(columns, 4))
    return figure


@styled()
def loss_over_active(
    results: pd.DataFrame,
    accounting: pd.DataFrame,
    *,
    metric: str = "val/loss",
    published: pd.DataFrame | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the metric of every arm over its active parameters, as in the report's Figure 1: mean and range over seeds.

    The input embedding counts as active. `published` (name, active_params, value) must be the same metric on the same
    data; its points are hollow.
    """
    order = [arm for arm in arms or arms_of(results) if arm in set(results["arm"])]
    active = accounting.set_index("arm")["active_params"]
    if missing := [arm for arm in order if arm not in active.index]:
        raise ValueError(f"accounting: no active_params for {', '.join(missing)}")
    styles = arm_styles(list(arms or order))
    ax = single(2.2 + legend_height(len(order) + (published is not None), 2), title)
    for arm in order:
        values = results[results["arm"] == arm][metric].dropna()
        if values.empty:
            continue
        ax.plot([active[arm]] * 2, [values.min(), values.max()], color=styles[arm]["color"], linewidth=1.0)
        ax.plot(active[arm], values.mean(), label=arm, **(styles[arm] | {"linestyle": "none", "markersize": 5.5}))
    if published is not None:
        hollow: Any = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "0.3", "linestyle": "none"}
        ax.plot(published["active_params"], published["value"], label="published", **hollow)
        for name, active_params, value in zip(*(published[column] for column in PUBLISHED), strict=True):
            ax.annotate(name, (active_params, value), (4, 3), textcoords="offset points", fontsize=7)
    ax.margins(0.12)
    large_numbers(ax, "active parameters per token", ticks=5)
    ax.set_ylabel(quantity(metric).label)
    legend_below([ax], 2)
    return ax


@styled()
def cache_over_context(accounts: Mapping[str, Account], *, longest: int = 131_072, title: str | None = None) -> Axes:
    """Draw the KV cache of one sequence over its length on logarithmic axes, for named models, largest cache first.

    The legend gives the bytes per token over all layers, at the bits per element of each account.
    """
    order = sorted(accounts, key=lambda name: -accounts[name].kv_bytes_per_token)
    styles = arm_styles(order)
    lengths = np.geomspace(1024, longest, 8)
    ax = single(2.2 + legend_height(len(order), 1), title)
    for name in order:
        bytes_per_token = accounts[name].kv_bytes_per_token
        label = f"{name}: {bytes_per_token / 1e3:,.1f} kB per token"
        ax.plot(lengths, lengths * bytes_per_token, label=label, **(styles[name] | {"markevery": 7}))
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_locator(FixedLocator([2**power for power in range(10, int(np.log2(longest)) + 1, 2)]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda length, _: f"{length / 1024:.0f}Ki"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(EngFormatter(unit="B", sep=""))
    ax.set_xlabel("context (tokens)")
    ax.set_ylabel("KV cache of one sequence")
    legend_below([ax], 1)
    return ax


@styled()
def metric_over_cache(
    results: pd.DataFrame, *, metric: str = "val/loss", arms: Sequence[str] | None = None, title: str | None = None
) -> Axes:
    """Draw the metric of every arm over the bytes that its cache allocates per token: mean and range over seeds."""
    held = "deployed/kv_bytes_per_token"
    order = [arm for arm in arms or arms_of(results) if results[results["arm"] == arm][held].notna().any()]
    styles = arm_styles(list(arms or order))
    ax = single(2.2 + legend_height(len(order), 2), title)
    for arm in order:
        trials = results[results["arm"] == arm]
        values, size = trials[metric].dropna(), trials[held].mean()
        ax.plot([size] * 2, [values.min(), values.max()], color=styles[arm]["color"], linewidth=1.0)
        ax.plot(size, values.mean(), label=arm, **(styles[arm] | {"linestyle": "none", "markersize": 5.5}))
    ax.set_xscale("log")
    ax.margins(0.12)
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _binary(size)))
    ax.set_xlabel("cache per token")
    ax.set_ylabel(quantity(metric).label)
    legend_below([ax], 2)
    return ax


def _binary(size: float) -> str:
    """Format a number of bytes, a power of two."""
    return f"{size:g} B" if size < 1024 else f"{size / 1024:g} KiB"
