"""Figures of the load of experts and devices. See `plots` for style and shared arguments.

Both read a routing table: one row per arm, seed, step, layer and expert with columns device and load (token-expert
pairs, including dropped ones).
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from dsv2.plots.hover import say, say_cells
from dsv2.plots.style import PAGE, REFERENCE, arm_styles, arms_of, headline, panel_title, panels, styled

TICKS = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16)  # candidates for the colour scale of a load


@styled({"axes.grid": False})
def load_heatmap(
    routing: pd.DataFrame,
    *,
    seed: int | None = None,
    arms: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the load of every expert over training for one seed (default: the first), a panel per arm and MoE layer.

    Training is measured in tokens where the table has a column `tokens`, else in steps.

    Experts are sorted by final load, highest on top, so that the two ends of the colour scale can be told apart by
    position in black and white. All panels share one scale: 1, the mean, is white. Without a column `seed`, the
    table is of one seed.
    """
    shown, of_seed = routed(routing, arms), routing
    if "seed" in routing:
        seed = int(routing["seed"].min()) if seed is None else seed
        of_seed = routing[routing["seed"] == seed]
    if of_seed.empty:
        raise ValueError(f"seed={seed}: must be a seed of the routing table, {sorted(set(routing['seed']))}")
    over = "tokens" if "tokens" in of_seed else "step"
    layers, shares = sorted(set(of_seed["layer"])), _shares(of_seed, over)
    busiest = max(float(np.percentile(load, 99.5)) for load in shares.values())
    highest = max(np.ceil(busiest * 2) / 2, 1.5)
    norm = TwoSlopeNorm(1, 0, highest)
    blocks = -(-len(shown) // 6)  # rows of up to six arms
    columns = -(-len(shown) // blocks)
    rows = blocks * len(layers)
    size = (max(PAGE * columns / 6, PAGE / 2), 1.25 * rows + 0.7)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    mesh = None
    for ax in grid.flat:
        ax.set_axis_off()
    for i, arm in enumerate(shown):
        for j, layer in enumerate(layers):
            ax = grid[i // columns * len(layers) + j, i % columns]
            if (arm, layer) not in shares:
                continue
            ax.set_axis_on()
            load = shares[arm, layer]
            edges = _edges(load.columns.to_numpy(dtype=float))
            mesh = ax.pcolormesh(edges, np.arange(len(load) + 1), load, norm=norm, cmap="RdBu_r", rasterized=True)
            say_cells(ax, load, "expert", over, f"{arm}, layer {layer}: load / mean load")
            if j == 0:
                panel_title(ax, arm)
            ax.tick_params(labelbottom=j == len(layers) - 1)
            if i % columns == 0:
                ax.set_ylabel(f"layer {layer}\nexpert, by load", fontsize=7)
            ax.set_yticks([])
            ax.xaxis.set_major_locator(MaxNLocator(2, integer=True))
            if over == "tokens":
                ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    grid[0, 0].invert_yaxis()
    figure.supxlabel("training tokens" if over == "tokens" else "training step", fontsize=8)
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=grid, extend="max", extendfrac=0.02, aspect=30, pad=0.015)
    bar.set_label("load / mean load" if seed is None else f"load / mean load, seed {seed}")
    bar.set_ticks([tick for tick in TICKS if tick <= highest and (tick != 1.5 or highest < 3)])
    headline(figure, title)
    return figure


@styled({"axes.grid": False, "hatch.linewidth": 0.6})
def device_load(routing: pd.DataFrame, *, arms: Sequence[str] | None = None, title: str | None = None) -> Figure:
    """Draw the load of each device at the last logged step, highest first, mean over seeds and layers, by arm.

    Load above the budget of capacity factor 1.0 is hatched; the printed share is its mean over seeds and layers.
    """
    shown = routed(routing, arms)
    styles = arm_styles(list(arms or shown))
    ranked = {arm: _device_loads(routing[routing["arm"] == arm]) for arm in shown}
    highest = max(loads.mean(0).max() for loads in ranked.values())
    figure, axes = panels(len(shown), columns=3, height=1.35, title=title, sharey=True)
    for ax, arm in zip(axes, shown, strict=True):
        loads = ranked[arm]  # (seeds x layers, D), sorted
        mean, ranks = loads.mean(0), np.arange(1, loads.shape[1] + 1)
        over = np.maximum(mean - 1, 0)
        bars = ax.bar(ranks, mean - over, color=styles[arm]["color"], width=0.8)
        for rank, bar, value in zip(ranks, bars, mean, strict=True):
            say(bar, [f"{arm}, device {rank} by load: {value:.3f} of the mean"])
        above = over > 0
        ax.bar(
            ranks[above],
            over[above],
            bottom=1,
            facecolor="white",
            edgecolor=styles[arm]["color"],
            hatch="/////",
            width=0.8,
        )
        ax.axhline(1, **REFERENCE)
        share = np.maximum(loads - 1, 0).sum(1).mean() / loads.shape[1]
        ax.text(0.98, 0.96, f"{share:.1%} over", transform=ax.transAxes, ha="right", va="top", fontsize=7)
        panel_title(ax, arm)
        ax.set_ylim(0, max(highest * 1.12, 1.3))
        ax.xaxis.set_major_locator(MaxNLocator(min(len(ranks), 8), integer=True))
    axes[0].text(len(ranks) + 0.45, 1.02, "capacity 1.0", ha="right", va="bottom", fontsize=7)
    _outer_labels(axes, "device, highest load first", "load / mean load")
    return figure


def routed(routing: pd.DataFrame, arms: Sequence[str] | None) -> list[str]:
    """Return the arms with MoE layers, in the study's order."""
    if not len(routing):
        raise ValueError("routing: the table is empty; dense models have no routing")
    present = arms_of(routing)
    return [arm for arm in arms or present if arm in present]


def _shares(routing: pd.DataFrame, over: str) -> dict[Any, pd.DataFrame]:
    """Return the load over its mean per (arm, layer): experts by `over`, sorted by final load, highest first."""
    shares = {}
    for (arm, layer), table in routing.groupby(["arm", "layer"]):
        load = table.pivot(index="expert", columns=over, values="load").sort_index(axis=1)
        load = load / load.mean()
        shares[arm, layer] = load.loc[load.iloc[:, -1].sort_values(ascending=False, kind="stable").index]
    return shares


def _device_loads(routing: pd.DataFrame) -> NDArray[np.float64]:
    """Return the load over the mean of each device at each seed's last step, descending: (seeds x layers, D)."""
    last = routing[routing["step"] == routing.groupby("seed")["step"].transform("max")]
    table = last.groupby(["seed", "layer", "device"])["load"].sum().unstack("device").to_numpy(dtype=float)
    return -np.sort(-table / table.mean(1, keepdims=True), axis=1)


def _edges(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the edges of columns centred on the steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[1.5 * steps[0] - 0.5 * steps[1]], middle, [1.5 * steps[-1] - 0.5 * steps[-2]]])


def _outer_labels(axes: Sequence[Axes], x: str, y: str) -> None:
    for ax in axes:
        if ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(y, fontsize=7)
        ax.set_xlabel(x, fontsize=7)
