"""Figures of one run's expert analyses, from the tables of `dsv2.routing`.

See `plots` for style and shared arguments. If there are many layers, `MOST_LAYERS` evenly spaced ones are shown.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.cluster import hierarchy

from dsv2.metrics import quantity
from dsv2.plots.style import (
    PAGE,
    ZERO,
    arm_styles,
    figure_of,
    legend_below,
    legend_within,
    panels,
    percent,
    rows_axis,
    single,
    styled,
    tick_names,
)

MOST_LAYERS = 6
LOSS = quantity("val/loss")


@styled({"axes.grid.axis": "x"})
def loss_changes(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw the change of each intervention to the loss of the first row, with its 95% interval over sequences."""
    changed = table.iloc[1:]
    colour = sns.color_palette("colorblind")[0]
    positions = np.arange(len(changed))
    ax = single(0.75 + 0.3 * len(changed), title)
    errors = np.abs(changed[["low", "high"]].to_numpy() - changed[["difference"]].to_numpy()).T
    ax.errorbar(changed["difference"], positions, xerr=errors, fmt="o", color=colour, capsize=2.5)
    drawn = changed[["low", "difference", "high"]].replace([np.inf, -np.inf], np.nan)  # infinite for one sequence
    ends = drawn.max(axis=1)
    for position, value, end in zip(positions, changed["difference"], ends, strict=True):
        ax.annotate(f"{value:+.3f}", (end, position), (5, 0), textcoords="offset points", va="center", fontsize=7)
    ax.axvline(0, **ZERO)
    rows_axis(ax, [str(name) for name in changed.iloc[:, 0]])
    lowest, highest = min(float(np.nanmin(drawn.to_numpy(dtype=float))), 0.0), max(float(ends.max()), 0.0)
    extent = (highest - lowest) or 1e-3
    ax.set_xlim(lowest - 0.05 * extent, highest + 0.3 * extent)
    ax.set_xlabel(f"change in loss ({LOSS.unit})")
    return figure_of(ax)


@styled()
def loss_over_masked(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw the increase in loss over the share of top experts masked, a line per value of column `run`."""
    ax = single(2.2, title)
    for run, style in arm_styles(list(dict.fromkeys(table["run"]))).items():
        line = table[table["run"] == run]
        ax.plot(line["ratio"], line["difference"], label=run, **style)
        ax.fill_between(line["ratio"], line["low"], line["high"], color=style["color"], alpha=0.2, linewidth=0)
    ax.axhline(0, **ZERO)
    percent(ax.xaxis, decimals=None)
    ax.set_xticks(sorted(set(table["ratio"])))
    ax.set_xlabel("routed experts masked, highest affinity first")
    ax.set_ylabel(f"increase in {LOSS.name}\n({LOSS.unit})")
    if table["run"].nunique() > 1:
        legend_within(ax)
    return figure_of(ax)


@styled()
def loss_over_experts(
    table: pd.DataFrame, *, against: tuple[str, float] | None = None, title: str | None = None
) -> Figure:
    """Draw the loss over the number of routed experts per token (columns experts, loss).

    `against` is the (name, loss) of another run, dashed.
    """
    blue, orange = sns.color_palette("colorblind")[:2]
    ax = single(2.1, title)
    ax.plot(table["experts"], table["loss"], color=blue, marker="o")
    best = int(table["experts"].max())
    ax.annotate("as trained", (best, float(table["loss"].iloc[0])), (0, 6), textcoords="offset points", ha="right")
    if against is not None:
        name, loss = against
        ax.axhline(loss, color=orange, linestyle="--")
        side = ax.get_yaxis_transform()
        ax.text(0.99, loss, name, transform=side, ha="right", va="bottom", color=orange, fontsize=7)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("routed experts per token, at evaluation")
    ax.set_ylabel(LOSS.label)
    ax.margins(y=0.12)
    return figure_of(ax)


@styled({"axes.grid": False})
def domain_heatmap(shares: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw each expert's share of a domain over its share of all text, a panel per layer; 1 is white.

    Experts are grouped by their most favoured domain.
    """
    domains, layers = list(dict.fromkeys(shares["domain"])), spread_layers(shares["layer"])
    highest = max(float(np.percentile(shares["lift"], 99.5)), 1.5)
    height = 0.16 * len(domains) + 0.55
    figure, axes = panels(len(layers), columns=1, height=height, title=title, width=PAGE, margin=0.6)
    for ax, layer in zip(axes, layers, strict=True):
        lift = shares[shares["layer"] == layer].pivot(index="domain", columns="expert", values="lift").loc[domains]
        favourite = lift.to_numpy().argmax(0)
        order = np.lexsort((-lift.to_numpy().max(0), favourite))
        norm = TwoSlopeNorm(1, 0, highest)
        mesh = ax.pcolormesh(lift.to_numpy()[:, order], norm=norm, cmap="RdBu_r", edgecolors="white", linewidth=0.3)
        tick_names(ax.yaxis, np.arange(len(domains)) + 0.5, domains)
        _few_ticks(ax, [str(expert) for expert in lift.columns[order]])
        ax.invert_yaxis()
        ax.set_title(f"layer {layer}")
        ax.set_xlabel("expert" if layer == layers[-1] else "")
    bar = figure.colorbar(mesh, ax=axes, extend="max", pad=0.015, fraction=0.04)
    bar.set_label("share of the domain /\nshare of all text", fontsize=7)
    return figure


@styled({"axes.grid.axis": "y"})
def information_bars(table: pd.DataFrame, of: str, *, title: str | None = None) -> Figure:
    """Draw the mutual information of `of` and expert over layers, with its value by chance and its maximum."""
    blue, orange = sns.color_palette("colorblind")[:2]
    positions = np.arange(len(table))
    ax = single(2.1, title)
    ax.bar(positions, table["information"], color=blue, width=0.55, label="measured")
    ax.hlines(table["chance"], positions - 0.36, positions + 0.36, color=orange, linewidth=2, label="by chance")
    most = table["most"]
    ax.hlines(most, positions - 0.36, positions + 0.36, color="black", linestyle=":", label="maximum")
    ax.set_xticks(positions, [str(layer) for layer in table["layer"]])
    padding = max(3 - len(positions), 0) / 2  # keeps a few bars from filling the width
    ax.set_xlim(-0.6 - padding, len(positions) - 0.4 + padding)
    ax.set_ylim(0, float(most.max()) * 1.3)
    ax.set_xlabel("MoE layer")
    ax.set_ylabel(f"mutual information of\n{of} and expert (nats)")
    ax.legend(ncols=3, loc="upper center", columnspacing=1, handlelength=1.6)
    return figure_of(ax)


@styled()
def token_concentration(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw the share of each expert's pairs that belong to its ten most frequent tokens, and by chance; by layer.

    Experts are sorted by that share.
    """
    layers = spread_layers(table["layer"])
    blue, orange = sns.color_palette("colorblind")[:2]
    figure, axes = panels(len(layers), columns=3, height=1.7, title=title, sharey=True)
    for ax, layer in zip(axes, layers, strict=True):
        experts = table[table["layer"] == layer].sort_values("concentration", ascending=False)
        ranks = np.arange(1, len(experts) + 1)
        ax.plot(ranks, experts["concentration"], color=blue, marker=".", label="measured")
        ax.plot(ranks, experts["chance"].to_numpy(), color=orange, linestyle="--", label="tokens shuffled")
        ax.set_title(f"layer {layer}")
        ax.set_ylim(0, None)
        percent(ax.yaxis)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel("expert, most concentrated first")
    axes[0].set_ylabel("share of its ten most\nfrequent tokens")
    axes[0].legend()
    return figure


@styled({"axes.grid": False})
def coactivation_heatmap(pairs: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw how often two experts are chosen together, relative to independence, a panel per layer; 1 is white.

    Experts are ordered so that those often chosen together are adjacent.
    """
    layers = spread_layers(pairs["layer"])
    figure, axes = panels(len(layers), columns=3, height=2.2, title=title)
    for ax, layer in zip(axes, layers, strict=True):
        of_layer = pairs[pairs["layer"] == layer]
        size = int(of_layer["other"].max()) + 1
        log_ratio = np.full((size, size), np.nan)
        expert, other = of_layer["expert"], of_layer["other"]
        log_ratio[expert, other] = log_ratio[other, expert] = np.log2(of_layer["ratio"].clip(2**-3, 2**3))
        order = _together(log_ratio)
        shown = log_ratio[np.ix_(order, order)]
        mesh = ax.pcolormesh(np.ma.masked_invalid(shown), vmin=-3, vmax=3, cmap="RdBu_r", rasterized=True)
        ax.set_aspect("equal")
        ax.invert_yaxis()
        ax.set_title(f"layer {layer}")
        _few_ticks(ax, [str(expert) for expert in order])
        ax.set_yticks(ax.get_xticks(), [label.get_text() for label in ax.get_xticklabels()])
        ax.set_xlabel("expert")
    axes[0].set_ylabel("expert")
    bar = figure.colorbar(mesh, ax=axes, extend="both", pad=0.015, shrink=0.9)
    bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    bar.set_label("chosen together /\nif independent", fontsize=7)
    return figure


@styled()
def certainty_over_layers(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw the entropies of the router and the shares of chosen affinity and top gate over layers, all from 0 to 1.

    Columns that the table lacks are left out.
    """
    names = {
        "entropy_mean": "entropy of the mean",
        "entropy_token": "entropy per token",
        "entropy_chosen": "entropy of chosen gates",
        "chosen_mass": "sum of chosen gates",
        "top_gate": "top gate / that sum",
    }
    lines = {column: label for column, label in names.items() if column in table}
    ax = single(2.5, title)
    for (column, label), style in zip(lines.items(), arm_styles(list(lines)).values(), strict=True):
        ax.plot(table["layer"], table[column], label=label, **style)
    ax.set_ylim(0, 1.05)
    ax.set_xticks(spread_layers(table["layer"]))
    ax.margins(x=0.1)
    ax.set_xlabel("MoE layer")
    ax.set_ylabel(f"entropy / log {'E' if 'entropy_token' in lines else 'K'}, or share")
    legend_below([ax], 2, columnspacing=1, handlelength=2.4)
    return figure_of(ax)


@styled()
def overlap_over_training(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Draw the overlap of a token's experts with its final ones over training, a line per layer.

    Values by chance are dashed.
    """
    layers = spread_layers(table["layer"])
    ax = single(2.3, title)
    for layer, style in arm_styles([f"layer {layer}" for layer in layers]).items():
        steps = table[table["layer"] == int(layer.removeprefix("layer "))]
        ax.plot(steps["step"], steps["overlap"], label=layer, **style)
        ax.plot(steps["step"], steps["chance"], color=style["color"], linestyle=(0, (2, 2)), linewidth=0.9)
    last = table[table["layer"] == layers[-1]]
    middle = last.iloc[len(last) // 2]
    ax.annotate("by chance", (middle["step"], middle["chance"]), (0, 3), textcoords="offset points", fontsize=7)
    ax.set_ylim(0, 1.05)
    percent(ax.yaxis)
    ax.set_xlabel("training step")
    ax.set_ylabel("overlap with experts\nof the last step")
    ax.legend()
    return figure_of(ax)


def spread_layers(layers: "pd.Series[int]") -> list[int]:
    """Return the layers, or `MOST_LAYERS` of them evenly spaced."""
    numbers = sorted(set(layers))
    if len(numbers) <= MOST_LAYERS:
        return numbers
    return [numbers[round(index)] for index in np.linspace(0, len(numbers) - 1, MOST_LAYERS)]


def _few_ticks(ax: Axes, labels: Sequence[str]) -> None:
    """Set every label if there is room, else every second, fourth, and so on."""
    room = ax.get_window_extent().width / ax.figure.dpi / 0.19
    every = 1
    while len(labels) / every > room:
        every *= 2
    shown = range(0, len(labels), every)
    ax.set_xticks([index + 0.5 for index in shown], [labels[index] for index in shown])


def _together(log_ratio: NDArray[np.float64]) -> list[int]:
    """Order experts so that pairs with high ratios are adjacent."""
    if len(log_ratio) < 3:
        return list(range(len(log_ratio)))
    first, second = np.triu_indices(len(log_ratio), 1)
    distances = np.nanmax(log_ratio) - log_ratio[first, second]
    tree = hierarchy.linkage(distances, "average")
    return [int(leaf) for leaf in hierarchy.leaves_list(hierarchy.optimal_leaf_ordering(tree, distances))]
