"""What the points and cells of a figure say when they are pointed at on a page; other formats do not show it.

The texts travel in the `gid` of an artist, which becomes an attribute of its group in an SVG (`report.svg` reads them).
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # pages are written without them
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

POINTS, CELLS, FIXED = "hover:", "cells:", "fixed"  # how a gid begins
MOST_POINTS = 40  # of one curve
MOST_STEPS = 60  # columns of a map of cells


def say(artist: "Artist", texts: Sequence[str]) -> None:
    """Give each point of a line with markers, or each shape of an artist, its text, in the order of drawing."""
    artist.set_gid(POINTS + json.dumps(list(texts), ensure_ascii=False))


def say_along(ax: "Axes", curve: "pd.DataFrame", name: str, form: str = ".4g") -> None:
    """Let points of a curve say its name, its place (the index), and the mean, min and max there."""
    shown = curve.iloc[evenly(len(curve), MOST_POINTS)]
    (points,) = ax.plot(shown.index, shown["mean"], linestyle="none", marker="o", markersize=7, alpha=0)
    points.set_label("_nolegend_")
    rows = zip(shown.index, shown["mean"], shown["min"], shown["max"], strict=True)
    say(
        points,
        [
            f"{name}\nat {_place(place)}: {mean:{form}}" + (f" ({low:{form}} to {high:{form}})" if low < high else "")
            for place, mean, low, high in rows
        ],
    )


def say_cells(ax: "Axes", values: "pd.DataFrame", row: str, column: str, name: str = "") -> None:
    """Let the cells of a map over the whole of `ax` say their row, column and value; rows go from the top down."""
    from matplotlib.patches import Rectangle

    shown = values.iloc[:, evenly(values.shape[1], MOST_STEPS)]
    told = {
        "name": name,
        "rows": [f"{row} {index}" for index in shown.index],
        "columns": [f"{column} {index}" for index in shown.columns],
        "values": [[None if np.isnan(v) else round(float(v), 2) for v in line] for line in shown.to_numpy(dtype=float)],
    }
    cover = Rectangle((0, 0), 1, 1, transform=ax.transAxes, facecolor="white", alpha=0, linewidth=0)
    cover.set_gid(CELLS + json.dumps(told, ensure_ascii=False, separators=(",", ":")))
    ax.add_patch(cover)


def keep_colours(artist: Any) -> None:
    """Keep the colours of an artist on a dark page, such as a number on a coloured cell."""
    artist.set_gid(FIXED)


def _place(place: float) -> str:
    return f"{place:,.0f}" if place >= 100 else f"{place:.3g}"


def evenly(count: int, most: int) -> NDArray[np.intp]:
    """Return up to `most` of the indices below `count`, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp)) if count else np.arange(0)
