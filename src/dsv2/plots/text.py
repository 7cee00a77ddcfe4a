"""Figures of one text's routing. See `plots` for style.

`loads` has one row per expert: expert, device, load (token-expert pairs, including dropped ones), dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv2.plots.style import COLOURS, COLUMN, PAGE, REFERENCE, arm_styles, headline, legend_within, panels, styled


def device_colour(device: int) -> str:
    """Return the colour of a device's experts as #rrggbb; the ten colours repeat from the eleventh device on."""
    return COLOURS[device % len(COLOURS)]


def busiest(*loads: pd.DataFrame) -> tuple[float, float]:
    """Return the highest load of an expert and of a device in any of the tables, in pairs."""
    return (
        max(float(table["load"].max()) for table in loads),
        max(float(table.groupby("device")["load"].sum().max()) for table in loads),
    )


@styled({"axes.grid": False, "hatch.linewidth": 0.6})
def text_load(
    loads: pd.DataFrame,
    budget: int,
    *,
    width: float = PAGE,
    busiest: Sequence[float] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the load of every expert and device against the budget of a device; dropped pairs are hatched.

    `budget` is in pairs per device; the line for experts is an even share of it, which is not enforced. `width` is in
    inches. To draw several figures on one scale, pass `busiest`, the return value of the function of that name.
    """
    devices = loads.groupby("device")[["load", "dropped"]].sum().reset_index()
    share = budget * len(devices) / len(loads)
    ratios = [3 if len(devices) > 4 else 4, 1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(width, 2.1), width_ratios=ratios)
    _bars(left, loads["expert"], loads)
    left.axhline(share, **(REFERENCE | {"linestyle": (0, (1, 1))}))
    left.set_xlabel("expert; dotted: an even share of a device's budget")
    left.set_ylabel("token-expert pairs")
    _bars(right, devices["device"], devices)
    right.axhline(budget, **REFERENCE)
    right.set_xlabel(f"device; dashed:\nbudget of {budget:,}")
    highest = busiest or (loads["load"].max(), devices["load"].max())
    for ax, most, room, bars in zip((left, right), highest, (share, budget), (loads, devices), strict=True):
        ax.set_ylim(0, 1.08 * max(most, room))
        ax.set_xlim(-0.7, len(bars) - 0.3)
        ax.xaxis.set_major_locator(MaxNLocator(16 if bars is loads else 8, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    headline(figure, title)
    return figure


@styled()
def load_profiles(profiles: Mapping[str, pd.DataFrame], *, title: str | None = None) -> Figure:
    """Draw loads over their mean, with each model's experts sorted by load, highest first."""
    styles = arm_styles(list(profiles))
    figure, (ax,) = panels(1, columns=1, height=2.1, title=title, width=1.5 * COLUMN, margin=0)
    ax.axhline(1, **REFERENCE)
    for name, loads in profiles.items():
        load = -np.sort(-loads["load"].to_numpy(dtype=float))
        ax.plot(np.arange(1, len(load) + 1), load / load.mean(), label=name, **(styles[name] | {"markersize": 3}))
    ax.set_ylim(bottom=0)
    ax.set_xlim(left=0.5)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("expert, highest load first; dashed: perfect balance")
    ax.set_ylabel("load / mean load")
    legend_within(ax, loc="upper right")
    return figure


def _bars(ax: Axes, positions: pd.Series, table: pd.DataFrame) -> None:
    """Draw kept pairs in the device's colour, with dropped ones hatched on top."""
    colours = [device_colour(device) for device in table["device"]]
    kept = table["load"] - table["dropped"]
    ax.bar(positions, kept, color=colours, width=0.8)
    over = table["dropped"] > 0
    edges = [colour for colour, hatched in zip(colours, over, strict=True) if hatched]
    look: dict[str, Any] = {"facecolor": "white", "edgecolor": edges, "hatch": "/////", "width": 0.8}
    ax.bar(positions[over], table["dropped"][over], bottom=kept[over], **look)
