"""Figures of one text's routing draw the loads that they are given."""

import numpy as np
import pandas as pd
import pytest

from dsv2 import plots
from dsv2.plots.text import busiest, device_colour
from tests.references.figures import TITLE, assert_readable


def table(loads: list[int], dropped: list[int], devices: int) -> pd.DataFrame:
    experts = np.arange(len(loads))
    columns = {"expert": experts, "device": experts // (len(loads) // devices)}
    return pd.DataFrame(columns | {"load": loads, "dropped": dropped})


LOADS = table([9, 3, 4, 4], [3, 0, 0, 0], devices=2)  # 12 and 8 pairs on two devices with room for 9 and 9


@pytest.mark.parametrize(("experts", "devices"), [(32, 8), (8, 4), (4, 1)])
def test_every_figure_is_whole_and_readable(experts: int, devices: int) -> None:
    loads = table([i * 7 % 23 + 3 for i in range(experts)], [i % 3 for i in range(experts)], devices)
    assert_readable(plots.text_load(loads, 60, title=TITLE))
    assert_readable(plots.load_profiles({"one model": loads, "another": LOADS}, title=TITLE))


def test_kept_and_dropped_pairs_stack_up_to_the_load() -> None:
    experts, devices = plots.text_load(LOADS, 9).axes
    for ax, kept, over in ((experts, [6, 3, 4, 4], [3]), (devices, [9, 8], [3])):
        assert [bar.get_height() for bar in ax.patches if not bar.get_hatch()] == kept  # type: ignore[attr-defined]
        assert [bar.get_height() for bar in ax.patches if bar.get_hatch()] == over  # type: ignore[attr-defined]
    assert list(experts.lines[0].get_ydata()) == [4.5, 4.5]  # type: ignore[arg-type]  # an even share of a budget of 9
    assert list(devices.lines[0].get_ydata()) == [9, 9]  # type: ignore[arg-type]
    assert "budget of 9" in devices.get_xlabel()


def test_experts_have_the_colour_of_their_device() -> None:
    experts, devices = plots.text_load(LOADS, 9).axes
    colours = [bar.get_facecolor() for bar in experts.patches if not bar.get_hatch()]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert [bar.get_facecolor() for bar in devices.patches if not bar.get_hatch()] == [colours[0], colours[2]]
    assert len({device_colour(device) for device in range(10)}) == 10
    assert device_colour(10) == device_colour(0)


def test_figures_to_be_compared_share_a_scale() -> None:
    small = table([1, 1, 2, 2], [0, 0, 0, 0], devices=2)
    assert busiest(small, LOADS) == (9.0, 12.0)
    limits = [
        [ax.get_ylim() for ax in plots.text_load(each, 5, busiest=busiest(small, LOADS)).axes]
        for each in (small, LOADS)
    ]
    assert limits[0] == limits[1] == [(0, pytest.approx(1.08 * 9)), (0, pytest.approx(1.08 * 12))]


def test_profiles_are_sorted_loads_over_their_mean() -> None:
    (ax,) = plots.load_profiles({"a": LOADS, "b": table([2, 2], [0, 0], devices=1)}).axes
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines["a"].get_ydata()) == [9 / 5, 4 / 5, 4 / 5, 3 / 5]  # type: ignore[arg-type]
    assert list(lines["b"].get_ydata()) == [1, 1]  # type: ignore[arg-type]
