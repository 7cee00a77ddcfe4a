"""The timeline draws every action where and when it ran."""

import pandas as pd
import pytest

from dsv2 import plots
from dsv2.plots.pipeline import COLOURS
from tests.references.figures import TITLE, assert_readable, overlapping_ticks

ROWS = [
    ("a", 0, 0, "F", 0.0, 1.0), ("a", 1, 1, "F", 1.0, 2.0), ("a", 1, 1, "BW", 2.0, 4.0), ("a", 0, 0, "BW", 4.0, 6.0),
    ("b", 0, 0, "F", 0.0, 3.0), ("b", 0, 3, "BW", 0.0, 3.0), ("b", 1, 1, "B", 3.0, 4.0), ("b", 1, 1, "W", 4.0, 5.0),
]  # fmt: skip
TABLE = pd.DataFrame(ROWS, columns=["schedule", "rank", "stage", "kind", "start", "end"])


@pytest.mark.parametrize("title", [None, TITLE])
def test_it_is_readable(title):
    figure = plots.pipeline_timeline(TABLE, title=title)
    assert_readable(figure)
    assert not overlapping_ticks(figure)


def boxes(ax):
    """Left, right, bottom and top of every bar."""
    corners = [path.vertices for collection in ax.collections for path in collection.get_paths()]
    return sorted((*box[:, 0][[0, 2]].tolist(), *box[:, 1][[0, 1]].round(6).tolist()) for box in corners)


def test_bars_stand_where_actions_ran():
    first, second = plots.pipeline_timeline(TABLE).axes
    assert boxes(first) == [(0, 1, -0.45, 0.45), (1, 2, 0.55, 1.45), (2, 4, 0.55, 1.45), (4, 6, -0.45, 0.45)]
    assert first.get_xlim() == second.get_xlim() == (0, 6)
    together = [box for box in boxes(second) if box[:2] == (0, 3)]
    assert together == [(0, 3, -0.45, 0), (0, 3, 0, 0.45)]  # halves of one rank


def test_the_legend_names_what_is_drawn():
    figure = plots.pipeline_timeline(TABLE[TABLE["schedule"] == "a"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["forward", "whole backward"]
    assert len(COLOURS) == 4
