"""The bars of a layer's time have the lengths of its parts."""

import pandas as pd
import pytest

from dsv2 import plots
from dsv2.plots.parallel import PARTS
from tests.references.figures import TITLE, assert_readable, overlapping_ticks

ROWS = pd.DataFrame({
    "sent": ["once per pair", "once per device"], "capacity": [None, 1.25],
    "shared": [0.001, 0.001], "experts": [0.004, 0.003], "straggler": [0.002, 0.0], "exposed": [0.003, 0.0005],
})  # fmt: skip


@pytest.mark.parametrize("title", [None, TITLE])
def test_it_is_readable(title):
    figure = plots.layer_times(ROWS, title=title).figure
    assert_readable(figure)
    assert not overlapping_ticks(figure)


def test_bars_follow_one_another():
    ax = plots.layer_times(ROWS)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["once per pair", "once per device, capacity 1.25"]
    bars = [[bar.get_x() for bar in bars] + [bar.get_width() for bar in bars] for bars in ax.containers]
    assert bars == [
        pytest.approx(row)
        for row in ([0, 0, 1, 1], [1, 1, 4, 3], [5, 4, 2, 0], [7, 4, 3, 0.5])  # left, left, width, width
    ]
    assert [bars.get_label() for bars in ax.containers] == list(PARTS.values())
