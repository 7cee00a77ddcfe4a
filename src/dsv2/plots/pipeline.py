"""Figures of pipeline schedules. See `plots` for style and shared arguments."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dsv2.plots.style import PAGE, legend_height, panel_title, panels, styled

COLOURS = {"F": "#4477aa", "B": "#ee7733", "W": "#55a868", "BW": "#cc3311"}
WORDS = {"F": "forward", "B": "gradients of inputs", "W": "gradients of weights", "BW": "whole backward"}
ROW = 0.11  # inches per rank
LATER = 0.55  # how strong the colour is of every further stage of a rank


@styled()
def pipeline_timeline(timelines: pd.DataFrame, *, unit: str = "forwards of a rank", title: str | None = None) -> Figure:
    """Draw what every rank does over time, one panel per schedule, all on one axis of time.

    `timelines` has schedule, rank, stage, kind (F, B, W or BW), start and end; actions that run together, of equal
    start and end, share the height of their rank. Later stages of a rank are paler.
    """
    names = list(dict.fromkeys(timelines["schedule"]))
    kinds = [kind for kind in COLOURS if kind in set(timelines["kind"])]
    ranks = timelines["rank"].max() + 1
    height = 0.5 + ROW * max(ranks, 4)
    margin = 0.1 + legend_height(1, 1)
    figure, axes = panels(len(names), columns=1, height=height, width=PAGE, margin=margin, title=title)
    for ax, name in zip(axes, names, strict=True):
        table = timelines[timelines["schedule"] == name]
        together = table.groupby(["rank", "start", "end"])["kind"].transform("size")
        place = table.groupby(["rank", "start", "end"]).cumcount()
        later = table["stage"] != table.groupby("rank")["stage"].transform("min")
        for kind in kinds:
            of_kind = table["kind"] == kind
            for strong in (True, False):
                rows = table[of_kind & (later != strong)]
                share = 0.9 / together[rows.index]
                bottom = rows["rank"] - 0.45 + place[rows.index] * share
                left, right, top = rows["start"], rows["end"], bottom + share
                corners = np.stack([[left, bottom], [left, top], [right, top], [right, bottom]]).transpose(2, 0, 1)
                look: dict[str, Any] = {"facecolor": COLOURS[kind], "alpha": 1.0 if strong else LATER}
                ax.add_collection(PolyCollection(list(corners), edgecolor="white", linewidth=0.15, **look))
        ax.set(xlim=(0, timelines["end"].max()), ylim=(ranks - 0.5, -0.5))
        ax.set_yticks([0, ranks - 1] if ranks > 1 else [0])
        ax.set_ylabel("rank")
        ax.grid(visible=False)
        panel_title(ax, name, width=100)
    axes[-1].set_xlabel(f"time ({unit})")
    handles = [Patch(color=COLOURS[kind], label=WORDS[kind]) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure
