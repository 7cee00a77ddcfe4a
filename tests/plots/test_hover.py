"""What points and cells say: as many texts as there are points, and no more cells than a page can hold."""

import json

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dsv2.plots.hover import CELLS, MOST_POINTS, MOST_STEPS, POINTS, say_along, say_cells

matplotlib.use("Agg")


def test_a_long_curve_says_a_part_with_both_ends() -> None:
    _, ax = plt.subplots()
    at = np.arange(1000) * 1024
    curve = pd.DataFrame({"mean": 1 / (1 + at), "min": 0.0, "max": 1.0}, index=at)
    say_along(ax, curve, "paper")
    (points,) = ax.lines
    texts = json.loads(points.get_gid().removeprefix(POINTS))
    assert len(texts) == len(points.get_xdata()) == MOST_POINTS
    assert texts[0] == "paper\nat 0: 1 (0 to 1)"
    assert texts[-1] == "paper\nat 1,022,976: 9.775e-07 (0 to 1)"
    assert points.get_alpha() == 0
    plt.close("all")


def test_a_map_says_its_cells_and_leaves_the_limits_alone() -> None:
    _, ax = plt.subplots()
    ax.set_xlim(0, 5)
    values = pd.DataFrame(np.ones((4, 300)), index=list("abcd"), columns=range(0, 3000, 10))
    say_cells(ax, values, "expert", "step")
    told = json.loads(ax.patches[0].get_gid().removeprefix(CELLS))
    assert told["rows"] == ["expert a", "expert b", "expert c", "expert d"]
    assert (len(told["columns"]), told["columns"][-1]) == (MOST_STEPS, "step 2990")
    assert np.array(told["values"]).shape == (4, MOST_STEPS)
    assert ax.get_xlim() == (0, 5)
    plt.close("all")
