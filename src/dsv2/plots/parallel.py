"""Figures of expert parallelism. See `plots` for style and shared arguments."""

import pandas as pd
from matplotlib.axes import Axes

from dsv2.plots.style import arm_styles, legend_below, legend_height, single, styled

PARTS = {
    "shared": "shared experts",
    "experts": "routed experts, mean of devices",
    "straggler": "waiting for the busiest device",
    "exposed": "all-to-all that nothing hides",
}


@styled()
def layer_times(rows: pd.DataFrame, *, title: str | None = None) -> Axes:
    """Draw where the time of one MoE layer goes, one bar per row: sent, capacity, and seconds of each of `PARTS`."""
    styles = arm_styles(list(PARTS))
    ax = single(0.5 + 0.25 * len(rows) + legend_height(len(PARTS), 1), title)
    labels = [
        sent if pd.isna(capacity) else f"{sent}, capacity {capacity:g}"
        for sent, capacity in zip(rows["sent"], rows["capacity"], strict=True)
    ]
    left = pd.Series(0.0, index=rows.index)
    for part, words in PARTS.items():
        width = rows[part] * 1e3
        ax.barh(labels, width, left=left, label=words, color=styles[part]["color"], height=0.7)
        left += width
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("ms, forward and backward")
    legend_below([ax], 1)
    return ax
