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


def test_bars_stand_where_actions_ran():
    first, second = plots.pipeline_timeline(TABLE).axes
    drawn = {(p.get_x(), p.get_width(), round(p.get_y() + p.get_height() / 2, 6)) for p in first.patches}
    assert drawn == {(0, 1, 0), (1, 1, 1), (2, 2, 1), (4, 2, 0)}
    assert first.get_xlim() == second.get_xlim() == (0, 6)
    together = sorted((p.get_y(), p.get_height()) for p in second.patches if p.get_width() == 3)
    assert together == [pytest.approx((-0.45, 0.45)), pytest.approx((0.0, 0.45))]  # halves of one rank


def test_the_legend_names_what_is_drawn():
    figure = plots.pipeline_timeline(TABLE[TABLE["schedule"] == "a"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["forward", "whole backward"]
    assert len(COLOURS) == 4
