"""Figures of balance: targets of the losses, collapse over training, load of every layer at one step, and drops.

See `plots` for style and shared arguments, `plots.load` for the routing table.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from dsv2.metrics import quantity
from dsv2.plots.load import routed
from dsv2.plots.style import (
    DASHED,
    arm_styles,
    arms_of,
    curves,
    draw_curves,
    floor_line,
    legend_below,
    legend_height,
    panel_title,
    panels,
    percent,
    rows_axis,
    single,
    styled,
    tokens_axis,
)

if TYPE_CHECKING:
    from ipywidgets import Widget

CONTROLLED = {  # the quantities that Eq. 23, 26 and 29 are meant to control
    "routing/max_violation": "expert-level loss",
    "routing/device_max_violation": "device-level loss",
    "routing/received_max_violation": "communication loss",
}
COLLAPSE = ("routing/max_violation", "routing/entropy", "routing/dead_experts")
DROPS = {"routing/overflow": "over capacity 1.0", "routing/drop_rate": "dropped in training"}
SCREEN = 96  # CSS pixels per inch
HIGHEST = 4.0  # upper end of the colour scale of a load; higher loads are clipped


@styled()
def losses_and_control(
    results: pd.DataFrame,
    *,
    floor: Mapping[str, float] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the three quantities that the balance losses control: a point per seed and a bar at the mean, by arm.

    The axis is logarithmic. `floor` holds a random router's values, dashed; the row with the lowest mean is grey.
    """
    order = [arm for arm in arms or arms_of(results) if arm in set(results["arm"])]
    styles = arm_styles(list(arms or order))
    shown = [metric for metric in CONTROLLED if metric in results and results[metric].notna().any()]
    if not shown:
        raise ValueError("results: no routing metric was logged; dense models have none")
    figure, axes = panels(len(shown), columns=3, height=0.2 * len(order) + 0.75, title=title, sharey=True)
    for ax, metric in zip(axes, shown, strict=True):
        values = {arm: results[results["arm"] == arm][metric].dropna() for arm in order}
        means = pd.Series({arm: of_seeds.mean() for arm, of_seeds in values.items()})
        for row, arm in enumerate(order):
            ax.plot(values[arm], np.full(len(values[arm]), row), **(styles[arm] | {"linestyle": "none"}))
            ax.plot([means[arm]] * 2, [row - 0.32, row + 0.32], color="black", linewidth=1.4)
        lowest = order.index(str(means.idxmin()))
        ax.axhspan(lowest - 0.42, lowest + 0.42, color="0.9", linewidth=0, zorder=0)
        floor_line(ax, floor, metric, vertical=True)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(False, axis="y")
        panel_title(ax, f"target of the {CONTROLLED[metric]}")
        ax.set_xlabel(quantity(metric).label, fontsize=7)
    rows_axis(axes[0], order)
    legend_below(axes, 1)
    return figure


@styled()
def collapse_over_training(
    metrics: pd.DataFrame,
    *,
    floor: Mapping[str, float] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw routing collapse over tokens, as expert violation, entropy of the load and dead experts.

    Mean and range over seeds; `floor` holds a random router's values over as many tokens, dashed.
    """
    shown = [metric for metric in COLLAPSE if metric in set(metrics["metric"])]
    if not shown:
        raise ValueError("metrics: no routing metric was logged; dense models have none")
    styles = arm_styles(arms or arms_of(metrics))
    figure, axes = panels(len(shown), columns=3, height=2.0, title=title)
    for ax, metric in zip(axes, shown, strict=True):
        draw_curves(ax, curves(metrics, metric, styles), styles)
        floor_line(ax, floor, metric)
        panel_title(ax, quantity(metric).label)
        if metric != "routing/entropy":
            ax.set_ylim(bottom=-0.02 if metric == "routing/dead_experts" else 0)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        tokens_axis(ax)
    legend_below(axes, 4)
    return figure


@styled({"axes.grid": False})
def load_at(
    routing: pd.DataFrame,
    step: int,
    *,
    seed: int | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the load of every expert (columns) in every MoE layer (rows) at one logged step and seed, a panel per arm.

    The colour scale is the same for all steps, so that they can be compared; vertical lines separate devices.
    """
    shown = routed(routing, arms)
    seed = int(routing["seed"].min()) if seed is None else seed
    of_seed = routing[routing["seed"] == seed]
    at_step = of_seed[of_seed["step"] == step]
    if at_step.empty:
        logged = sorted(set(of_seed["step"]))
        raise ValueError(f"step={step}, seed={seed}: not logged; steps of this seed are {logged}")
    norm = TwoSlopeNorm(1, 0, HIGHEST)
    height = max(0.16 * at_step["layer"].nunique() + 0.5, 1.25)
    figure, axes = panels(len(shown), columns=2, height=height, title=title, sharey=True)
    for ax, arm in zip(axes, shown, strict=True):
        table = at_step[at_step["arm"] == arm]
        load = table.pivot(index="layer", columns="expert", values="load")
        load = load.div(load.mean(axis=1), axis=0)
        across, down = (np.append(i, i[-1] + 1) - 0.5 for i in (load.columns.to_numpy(), load.index.to_numpy()))
        mesh = ax.pcolormesh(across, down, load, norm=norm, cmap="RdBu_r", rasterized=True)
        first_experts = table.groupby("device")["expert"].min()
        for border in sorted(set(first_experts))[1:]:
            ax.axvline(border - 0.5, color="black", linewidth=0.5)
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        panel_title(ax, f"{arm}, maximum {load.to_numpy().max():.1f}", width=36)
        ax.set_xlabel("expert, lines between devices", fontsize=7)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes[0].invert_yaxis()
    axes[0].set_ylabel("layer", fontsize=7)
    bar = figure.colorbar(mesh, ax=axes, extend="max", extendfrac=0.05, aspect=20, pad=0.015)
    bar.set_label(f"load / mean load\nstep {step}, seed {seed}", fontsize=7)
    bar.set_ticks([0, 0.5, 1, 2, 3, 4], labels=["0", "½", "1", "2", "3", "4"])
    return figure


def load_view(routing: pd.DataFrame, *, arms: Sequence[str] | None = None) -> "Widget":
    """Return `load_at` as a notebook widget, with a slider over steps and a menu of seeds (needs ipywidgets)."""
    import ipywidgets

    routed(routing, arms)
    steps = ipywidgets.SelectionSlider(
        options=sorted(set(routing["step"])), description="step", continuous_update=False
    )
    seeds = ipywidgets.Dropdown(options=sorted(set(routing["seed"])), description="seed")
    canvas = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})

    def draw(_: object = None) -> None:
        figure = load_at(routing, steps.value, seed=seeds.value, arms=arms)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=2 * SCREEN)  # sharp on screens of twice the resolution, too
        canvas.layout.width = f"{figure.get_size_inches()[0] * SCREEN:.0f}px"  # else it is stretched to the cell
        canvas.value = buffer.getvalue()
        plt.close(figure)

    steps.observe(draw, "value")
    seeds.observe(draw, "value")
    draw()
    return ipywidgets.VBox([ipywidgets.HBox([steps, seeds]), canvas])


# ---- token dropping --------------------------------------------------------------------------------------------------


@styled()
def drops_over_training(
    metrics: pd.DataFrame, *, arms: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Draw the pairs above a capacity factor of 1.0 in every arm, and the dropped pairs in arms that drop tokens.

    Mean and range over seeds.
    """
    styles = arm_styles(arms or arms_of(metrics))
    dropping = metrics[(metrics["metric"] == "routing/drop_rate") & (metrics["value"] > 0)]["arm"].unique()
    if not len(dropping):
        raise ValueError("metrics: no arm drops tokens (routing/drop_rate is 0 or missing)")
    figure, axes = panels(2, columns=2, height=1.9, title=title, sharey=True)
    for ax, (metric, label) in zip(axes, DROPS.items(), strict=True):
        shown = styles if metric == "routing/overflow" else [arm for arm in styles if arm in set(dropping)]
        draw_curves(ax, curves(metrics, metric, shown), styles)
        panel_title(ax, label)
        percent(ax.yaxis)
        tokens_axis(ax)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("token-expert pairs (share)")
    legend_below(axes, 3)
    return figure


@styled()
def drops_over_affinity(tables: Mapping[str, pd.DataFrame], *, title: str | None = None) -> Axes:
    """Draw the share of pairs dropped by affinity group, for one or more named tables of `drops_by_affinity`.

    The dashed line is the share if pairs were dropped at random.
    """
    styles = arm_styles(list(tables))
    ax = single(2.1 + legend_height(len(tables) + 1, 2), title)
    for name, table in tables.items():
        ax.plot(table["bin"], table["share"], label=name, **styles[name])
        blind = table["dropped"].sum() / table["pairs"].sum()
        ax.axhline(blind, color=styles[name]["color"], linestyle=DASHED, linewidth=0.8, zorder=1)
    ax.plot([], [], color="0.3", linestyle=DASHED, linewidth=0.8, label="random dropping")
    bins = max(len(table) for table in tables.values())
    ax.set_xticks(np.arange(1, bins + 1), labels=_ends(bins))
    ax.set_xlabel("affinity of the pair, groups of equal size")
    ax.set_ylim(bottom=0)
    percent(ax.yaxis)
    ax.set_ylabel("pairs dropped (share)")
    legend_below([ax], 2)
    return ax


def _ends(bins: int) -> list[str]:
    """Label the groups; only the ends in words, so that the labels fit."""
    return ["lowest", *map(str, range(2, bins)), "highest"][-bins:] if bins > 2 else ["lowest", "highest"][:bins]
