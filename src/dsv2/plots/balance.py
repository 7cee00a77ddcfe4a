"""Figures of balance: what each loss controls, collapse over training, and the load of every layer at one step.

See `plots` for the look and the arguments they share, `plots_routing` for the routing table.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from dsv2.plots.load import routed
from dsv2.plots.style import (
    STYLE,
    arm_styles,
    arms_of,
    curves,
    draw_curves,
    handles,
    headline,
    panels,
    quantity,
    single,
    tokens_axis,
)

if TYPE_CHECKING:
    from ipywidgets import Widget

CONTROLLED = {  # what each of Eq. 23, 26 and 29 is written for
    "routing/max_violation": "expert-level loss",
    "routing/device_max_violation": "device-level loss",
    "routing/received_max_violation": "communication loss",
}
COLLAPSE = ("routing/max_violation", "routing/entropy", "routing/dead_experts")
DROPS = {"routing/overflow": "over capacity 1.0", "routing/drop_rate": "dropped in training"}
HIGHEST = 4.0  # of the colour scale of a load: what is above is as dark


def losses_and_control(
    results: pd.DataFrame,
    *,
    floor: Mapping[str, float] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """A point a seed and a bar at the mean for each arm against the three quantities that the balance losses control.

    Logarithmic: a step is a factor. `floor` is a random router's, dashed; the row with the lowest mean is grey.
    """
    order = [arm for arm in arms or arms_of(results) if arm in set(results["arm"])]
    styles = arm_styles(list(arms or order))
    shown = [metric for metric in CONTROLLED if metric in results and results[metric].notna().any()]
    if not shown:
        raise ValueError("results: none of the routing metrics is there; a dense study has no balance to draw")
    places = np.arange(len(order))
    with plt.rc_context(STYLE):
        figure, axes = panels(len(shown), columns=3, height=0.2 * len(order) + 0.75, sharey=True)
        for ax, metric in zip(axes, shown, strict=True):
            values = {arm: results[results["arm"] == arm][metric].dropna() for arm in order}
            means = pd.Series({arm: found.mean() for arm, found in values.items()})
            for place, arm in zip(places, order, strict=True):
                ax.plot(values[arm], np.full(len(values[arm]), place), **(styles[arm] | {"linestyle": "none"}))
                ax.plot([means[arm]] * 2, [place - 0.32, place + 0.32], color="black", linewidth=1.4)
            lowest = order.index(str(means.idxmin()))
            ax.axhspan(lowest - 0.42, lowest + 0.42, color="0.9", linewidth=0, zorder=0)
            if floor and metric in floor:
                ax.axvline(floor[metric], color="black", linestyle=(0, (4, 2)), linewidth=0.9, label="random router")
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator([0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_locator(NullLocator())
            ax.grid(False, axis="y")
            ax.set_title(f"target of the {CONTROLLED[metric]}", fontsize=7)
            ax.set_xlabel(quantity(metric).label, fontsize=7)
        axes[0].set_yticks(places, order)
        axes[0].set_ylim(len(order) - 0.5, -0.5)
        if labels := handles(axes)[1]:
            figure.legend(handles(axes)[0], labels, loc="outside lower center")
        headline(figure, title)
    return figure


def collapse_over_training(
    metrics: pd.DataFrame,
    *,
    floor: Mapping[str, float] | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Skew, evenness and death of the experts over tokens: busiest one, entropy of the load, experts without a token.

    Mean and range over seeds; `floor` is what a random router has over as many tokens, dashed.
    """
    shown = [metric for metric in COLLAPSE if metric in set(metrics["metric"])]
    if not shown:
        raise ValueError("metrics: none of the routing metrics is there; a dense study cannot collapse")
    styles = arm_styles(arms or arms_of(metrics))
    with plt.rc_context(STYLE):
        figure, axes = panels(len(shown), columns=3, height=2.0)
        for ax, metric in zip(axes, shown, strict=True):
            draw_curves(ax, curves(metrics, metric, styles), styles)
            if floor and metric in floor:
                ax.axhline(floor[metric], color="black", linestyle=(0, (4, 2)), linewidth=0.9, label="random router")
            ax.set_title(quantity(metric).label, fontsize=7)
            if metric != "routing/entropy":
                ax.set_ylim(bottom=-0.02 if metric == "routing/dead_experts" else 0)
            ax.yaxis.set_major_locator(MaxNLocator(5))
            tokens_axis(ax)
        found, labels = handles(axes)
        figure.legend(found, labels, loc="outside lower center", ncols=min(len(labels), 4))
        headline(figure, title)
    return figure


def load_at(
    routing: pd.DataFrame,
    step: int,
    *,
    seed: int | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Load of every expert (across) in every MoE layer (down) at one logged step and seed, a panel an arm.

    Colours are the same at every step, so that steps can be compared; lines part the devices.
    """
    shown = routed(routing, arms)
    seed = int(routing["seed"].min()) if seed is None else seed
    one = routing[(routing["seed"] == seed) & (routing["step"] == step)]
    if one.empty:
        logged = sorted(set(routing[routing["seed"] == seed]["step"]))
        raise ValueError(f"step={step}, seed={seed}: nothing was logged; this seed has steps {logged}")
    norm = TwoSlopeNorm(1, 0, HIGHEST)
    layers = one["layer"].nunique()
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = panels(len(shown), columns=2, height=max(0.16 * layers + 0.5, 1.25), sharey=True)
        for ax, arm in zip(axes, shown, strict=True):
            table = one[one["arm"] == arm]
            load = table.pivot(index="layer", columns="expert", values="load")
            load = load.div(load.mean(axis=1), axis=0)
            across, down = (np.append(i, i[-1] + 1) - 0.5 for i in (load.columns.to_numpy(), load.index.to_numpy()))
            mesh = ax.pcolormesh(across, down, load, norm=norm, cmap="RdBu_r", rasterized=True)
            first = table.groupby("device")["expert"].min()
            for border in sorted(set(first))[1:]:
                ax.axvline(border - 0.5, color="black", linewidth=0.5)
            ax.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
            ax.set_title(textwrap.fill(f"{arm}, busiest {load.to_numpy().max():.1f}", 36), fontsize=7)
            ax.set_xlabel("expert, lines part the devices", fontsize=7)
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes[0].invert_yaxis()
        axes[0].set_ylabel("layer", fontsize=7)
        bar = figure.colorbar(mesh, ax=axes, extend="max", extendfrac=0.05, aspect=20, pad=0.015)
        bar.set_label(f"load / mean load\nstep {step}, seed {seed}", fontsize=7)
        bar.set_ticks([0, 0.5, 1, 2, 3, 4], labels=["0", "½", "1", "2", "3", "4"])
        headline(figure, title)
    return figure


def load_view(routing: pd.DataFrame, *, arms: Sequence[str] | None = None) -> "Widget":
    """`load_at` in a notebook, with a slider over the logged steps and a choice of seed (needs ipywidgets)."""
    import ipywidgets

    routed(routing, arms)
    steps = ipywidgets.SelectionSlider(
        options=sorted(set(routing["step"])), description="step", continuous_update=False
    )
    seeds = ipywidgets.Dropdown(options=sorted(set(routing["seed"])), description="seed")
    canvas = ipywidgets.Image(format="png")

    def draw(_: object = None) -> None:
        figure = load_at(routing, steps.value, seed=seeds.value, arms=arms)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        canvas.value = buffer.getvalue()
        plt.close(figure)

    steps.observe(draw, "value")
    seeds.observe(draw, "value")
    draw()
    return ipywidgets.VBox([ipywidgets.HBox([steps, seeds]), canvas])


# ---- token dropping --------------------------------------------------------------------------------------------------


def drops_over_training(
    metrics: pd.DataFrame, *, arms: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Pairs over a capacity factor of 1.0 in every arm, and those dropped where arms drop: mean and range of seeds."""
    styles = arm_styles(arms or arms_of(metrics))
    dropping = metrics[(metrics["metric"] == "routing/drop_rate") & (metrics["value"] > 0)]["arm"].unique()
    if not len(dropping):
        raise ValueError("metrics: no arm drops tokens (routing/drop_rate is 0 or missing)")
    with plt.rc_context(STYLE):
        figure, axes = panels(2, columns=2, height=1.9, sharey=True)
        for ax, (metric, label) in zip(axes, DROPS.items(), strict=True):
            shown = styles if metric == "routing/overflow" else [arm for arm in styles if arm in set(dropping)]
            draw_curves(ax, curves(metrics, metric, shown), styles)
            ax.set_title(label, fontsize=7)
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            tokens_axis(ax)
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("token-expert pairs (share)")
        found, labels = handles(axes)
        figure.legend(found, labels, loc="outside lower center", ncols=min(len(labels), 3))
        headline(figure, title)
    return figure


def drops_over_affinity(tables: Mapping[str, pd.DataFrame], *, title: str | None = None) -> Axes:
    """`drops.drops_by_affinity` of one or more arms or layers by name: the share dropped of each group of pairs.

    The dashed line is what dropping pairs blindly would take of every group.
    """
    styles = arm_styles(list(tables))
    with plt.rc_context(STYLE):
        ax = single(2.1 + 0.17 * -(-(len(tables) + 1) // 2), title)
        for name, table in tables.items():
            ax.plot(table["bin"], table["share"], label=name, **styles[name])
            blind = table["dropped"].sum() / table["pairs"].sum()
            ax.axhline(blind, color=styles[name]["color"], linestyle=(0, (4, 2)), linewidth=0.8, zorder=1)
        ax.plot([], [], color="0.3", linestyle=(0, (4, 2)), linewidth=0.8, label="blind to affinity")
        bins = max(len(table) for table in tables.values())
        ax.set_xticks(np.arange(1, bins + 1), labels=_ends(bins))
        ax.set_xlabel("affinity of the pair to its expert, equal groups")
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_ylabel("pairs dropped (share)")
        assert isinstance(ax.figure, Figure)
        found, labels = handles([ax])
        ax.figure.legend(found, labels, loc="outside lower center", ncols=2)
        headline(ax.figure, title)
    return ax


def _ends(bins: int) -> list[str]:
    """Names of the groups: the ends alone in words, so that they fit a column."""
    return ["lowest", *map(str, range(2, bins)), "highest"][-bins:] if bins > 2 else ["lowest", "highest"][:bins]
