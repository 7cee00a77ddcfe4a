"""Figures of token dropping. See `plots` for the look and the arguments they share."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dsv2.analysis.curves import curves, draw_curves, handles, tokens_axis
from dsv2.analysis.style import STYLE, arm_styles, arms_of, headline, panels, single

DROPS = {"routing/overflow": "over capacity 1.0", "routing/drop_rate": "dropped in training"}


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
