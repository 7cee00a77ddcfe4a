"""Figures of the analyses of one run's experts, from the tables of `dsv2.routing`.

See `plots` for the look and the arguments they share. Of many layers, `MOST_LAYERS` evenly spread ones have a panel.
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

from dsv2.plots.style import (
    PAGE,
    ZERO,
    arm_styles,
    figure_of,
    legend_below,
    panels,
    percent,
    rows_axis,
    single,
    styled,
)

MOST_LAYERS = 6
NATS = "nats a token"


@styled({"axes.grid.axis": "x"})
def loss_changes(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """What each intervention adds to the loss, with its 95% interval over sequences; the first row is as trained."""
    changed = table.iloc[1:]
    colour = sns.color_palette("colorblind")[0]
    places = np.arange(len(changed))
    ax = single(0.75 + 0.3 * len(changed), title)
    errors = np.abs(changed[["low", "high"]].to_numpy() - changed[["difference"]].to_numpy()).T
    ax.errorbar(changed["difference"], places, xerr=errors, fmt="o", color=colour, capsize=2.5)
    drawn = changed[["low", "difference", "high"]].replace([np.inf, -np.inf], np.nan)  # of a single sequence
    ends = drawn.max(axis=1)
    for place, value, end in zip(places, changed["difference"], ends, strict=True):
        ax.annotate(f"{value:+.3f}", (end, place), (5, 0), textcoords="offset points", va="center", fontsize=7)
    ax.axvline(0, **ZERO)
    rows_axis(ax, [str(name) for name in changed.iloc[:, 0]])
    lowest, highest = min(float(np.nanmin(drawn.to_numpy(dtype=float))), 0.0), max(float(ends.max()), 0.0)
    reach = (highest - lowest) or 1e-3
    ax.set_xlim(lowest - 0.05 * reach, highest + 0.3 * reach)
    ax.set_xlabel(f"change of loss ({NATS})")
    return figure_of(ax)


@styled()
def loss_over_masked(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Rise of the loss over the share of top experts masked, a line for each value of column `run`."""
    ax = single(2.2, title)
    for run, style in arm_styles(list(dict.fromkeys(table["run"]))).items():
        line = table[table["run"] == run]
        ax.plot(line["ratio"], line["difference"], label=run, **style)
        ax.fill_between(line["ratio"], line["low"], line["high"], color=style["color"], alpha=0.2, linewidth=0)
    ax.axhline(0, **ZERO)
    percent(ax.xaxis, decimals=None)
    ax.set_xticks(sorted(set(table["ratio"])))
    ax.set_xlabel("routed experts masked, highest affinity first")
    ax.set_ylabel(f"rise of validation loss\n({NATS})")
    if table["run"].nunique() > 1:
        ax.legend()
    return figure_of(ax)


@styled()
def loss_over_experts(
    table: pd.DataFrame, *, against: tuple[str, float] | None = None, title: str | None = None
) -> Figure:
    """Loss over the routed experts a token (columns experts, loss); `against` is another run's (name, loss), dashed."""
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
    ax.set_xlabel("routed experts a token, at evaluation")
    ax.set_ylabel(f"validation loss ({NATS})")
    ax.margins(y=0.12)
    return figure_of(ax)


@styled({"axes.grid": False})
def domain_heatmap(shares: pd.DataFrame, *, title: str | None = None) -> Figure:
    """How much more of each domain an expert gets than of the whole text, a panel a layer; 1 is white.

    Experts are grouped by the domain that they favour most.
    """
    domains, layers = list(dict.fromkeys(shares["domain"])), _spread_layers(shares["layer"])
    highest = max(float(np.percentile(shares["lift"], 99.5)), 1.5)
    height = 0.16 * len(domains) + 0.55
    figure, axes = panels(len(layers), columns=1, height=height, title=title, width=PAGE, margin=0.6)
    for ax, layer in zip(axes, layers, strict=True):
        lift = shares[shares["layer"] == layer].pivot(index="domain", columns="expert", values="lift").loc[domains]
        favourite = lift.to_numpy().argmax(0)
        order = np.lexsort((-lift.to_numpy().max(0), favourite))
        norm = TwoSlopeNorm(1, 0, highest)
        mesh = ax.pcolormesh(lift.to_numpy()[:, order], norm=norm, cmap="RdBu_r", edgecolors="white", linewidth=0.3)
        ax.set_yticks(np.arange(len(domains)) + 0.5, domains)
        _few_ticks(ax, [str(expert) for expert in lift.columns[order]])
        ax.invert_yaxis()
        ax.set_title(f"layer {layer}")
        ax.set_xlabel("expert" if layer == layers[-1] else "")
    bar = figure.colorbar(mesh, ax=axes, extend="max", pad=0.015, fraction=0.04)
    bar.set_label("share of the domain /\nshare of all text", fontsize=7)
    return figure


@styled({"axes.grid.axis": "y"})
def information_bars(table: pd.DataFrame, of: str, *, title: str | None = None) -> Figure:
    """Mutual information of `of` and expert over layers, with what chance gives and the most possible."""
    blue, orange = sns.color_palette("colorblind")[:2]
    places = np.arange(len(table))
    ax = single(2.1, title)
    ax.bar(places, table["information"], color=blue, width=0.55, label="found")
    ax.hlines(table["chance"], places - 0.36, places + 0.36, color=orange, linewidth=2, label="by chance")
    most = table["most"]
    ax.hlines(most, places - 0.36, places + 0.36, color="black", linestyle=":", label="most possible")
    ax.set_xticks(places, [str(layer) for layer in table["layer"]])
    spare = max(3 - len(places), 0) / 2  # on both sides of few bars, which would be as wide as the figure
    ax.set_xlim(-0.6 - spare, len(places) - 0.4 + spare)
    ax.set_ylim(0, float(most.max()) * 1.3)
    ax.set_xlabel("MoE layer")
    ax.set_ylabel(f"mutual information of\n{of} and expert (nats)")
    ax.legend(ncols=3, loc="upper center", columnspacing=1, handlelength=1.6)
    return figure_of(ax)


@styled()
def token_concentration(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Share of each expert's tokens that its ten commonest make up, experts sorted, beside chance; a panel a layer."""
    layers = _spread_layers(table["layer"])
    blue, orange = sns.color_palette("colorblind")[:2]
    figure, axes = panels(len(layers), columns=3, height=1.7, title=title, sharey=True)
    for ax, layer in zip(axes, layers, strict=True):
        one = table[table["layer"] == layer].sort_values("concentration", ascending=False)
        ax.plot(np.arange(1, len(one) + 1), one["concentration"], color=blue, marker=".", label="its own tokens")
        chance = one["chance"].to_numpy()
        ax.plot(np.arange(1, len(one) + 1), chance, color=orange, linestyle="--", label="tokens shuffled")
        ax.set_title(f"layer {layer}")
        ax.set_ylim(0, None)
        percent(ax.yaxis)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.set_xlabel("expert, most concentrated first")
    axes[0].set_ylabel("pairs of its ten\ncommonest tokens")
    axes[0].legend()
    return figure


@styled({"axes.grid": False})
def coactivation_heatmap(pairs: pd.DataFrame, *, title: str | None = None) -> Figure:
    """How much more often two experts are chosen together than independent ones would be, a panel a layer; 1 is white.

    Experts are ordered so that those chosen together stand together.
    """
    layers = _spread_layers(pairs["layer"])
    figure, axes = panels(len(layers), columns=3, height=2.2, title=title)
    for ax, layer in zip(axes, layers, strict=True):
        one = pairs[pairs["layer"] == layer]
        size = int(one["other"].max()) + 1
        log_ratio = np.full((size, size), np.nan)
        values = np.log2(one["ratio"].clip(2**-3, 2**3))
        log_ratio[one["expert"], one["other"]] = log_ratio[one["other"], one["expert"]] = values
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
    bar.set_label("times as often\nas independent", fontsize=7)
    return figure


@styled()
def certainty_over_layers(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Entropies of the router and where the gates' mass lies, over layers; all between 0 and 1."""
    lines = {
        "entropy_mean": "entropy of the mean token",
        "entropy_token": "entropy of a token",
        "chosen_mass": "affinity of the chosen",
        "top_gate": "top gate / chosen",
    }
    ax = single(2.5, title)
    for (column, label), style in zip(lines.items(), arm_styles(list(lines)).values(), strict=True):
        ax.plot(table["layer"], table[column], label=label, **style)
    ax.set_ylim(0, 1.05)
    ax.set_xticks(_spread_layers(table["layer"]))
    ax.margins(x=0.1)
    ax.set_xlabel("MoE layer")
    ax.set_ylabel("entropy / log E, or share")
    legend_below([ax], 2, columnspacing=1, handlelength=2.4)
    return figure_of(ax)


@styled()
def overlap_over_training(table: pd.DataFrame, *, title: str | None = None) -> Figure:
    """Overlap of a token's experts with those after the last step over training, a line a layer, chance dashed."""
    layers = _spread_layers(table["layer"])
    ax = single(2.3, title)
    for layer, style in arm_styles([f"layer {layer}" for layer in layers]).items():
        one = table[table["layer"] == int(layer.removeprefix("layer "))]
        ax.plot(one["step"], one["overlap"], label=layer, **style)
        ax.plot(one["step"], one["chance"], color=style["color"], linestyle=(0, (2, 2)), linewidth=0.9)
    last = table[table["layer"] == layers[-1]]
    middle = last.iloc[len(last) // 2]
    ax.annotate("by chance", (middle["step"], middle["chance"]), (0, 3), textcoords="offset points", fontsize=7)
    ax.set_ylim(0, 1.05)
    percent(ax.yaxis)
    ax.set_xlabel("training step")
    ax.set_ylabel("experts shared with\nthe last step")
    ax.legend()
    return figure_of(ax)


def _spread_layers(layers: "pd.Series[int]") -> list[int]:
    every = sorted(set(layers))
    if len(every) <= MOST_LAYERS:
        return every
    return [every[round(place)] for place in np.linspace(0, len(every) - 1, MOST_LAYERS)]


def _few_ticks(ax: Axes, labels: Sequence[str]) -> None:
    """Every label where there is room, else every second, fourth..."""
    room = ax.get_window_extent().width / ax.figure.dpi / 0.19
    every = 1
    while len(labels) / every > room:
        every *= 2
    places = range(0, len(labels), every)
    ax.set_xticks([place + 0.5 for place in places], [labels[place] for place in places])


def _together(log_ratio: NDArray[np.float64]) -> list[int]:
    """An order in which experts with high ratios are neighbours."""
    if len(log_ratio) < 3:
        return list(range(len(log_ratio)))
    first, second = np.triu_indices(len(log_ratio), 1)
    distances = np.nanmax(log_ratio) - log_ratio[first, second]
    tree = hierarchy.linkage(distances, "average")
    return [int(leaf) for leaf in hierarchy.leaves_list(hierarchy.optimal_leaf_ordering(tree, distances))]
