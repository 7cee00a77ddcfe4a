"""Figures of load draw what the routing table says."""

import numpy as np
import pandas as pd
import pytest

from dsv2 import plots
from dsv2.plots.load import routed
from tests.references.figures import TITLE, assert_readable
from tests.references.tables import SIX, Tables, fake


@pytest.mark.parametrize(
    ("arms", "layers", "experts"), [(SIX, 2, 32), (("none", "paper"), 1, 32), (tuple("abcdefgh"), 1, 8)]
)
def test_every_figure_is_whole_and_readable(arms: tuple[str, ...], layers: int, experts: int) -> None:
    routing = fake(arms, seeds=3, layers=layers, experts=experts, steps=4).routing
    for figure in (plots.load_heatmap(routing, title=TITLE), plots.device_load(routing, title=TITLE)):
        assert_readable(figure)


def test_heatmap_shares_one_scale_around_the_mean_of_one_seed(six: Tables) -> None:
    figure = plots.load_heatmap(six.routing, seed=4)
    meshes = [mesh for ax in figure.axes[:12] for mesh in ax.collections]
    assert len(meshes) == 12  # six arms, two layers
    assert len({id(mesh.norm) for mesh in meshes}) == 1
    assert meshes[0].norm(1.0) == 0.5
    shown = np.asarray(meshes[0].get_array()).reshape(32, 8)
    np.testing.assert_allclose(shown.mean(0), 1)
    assert (np.diff(shown[:, -1]) <= 0).all()  # busiest first
    assert "seed 4" in figure.axes[-1].get_ylabel()
    with pytest.raises(ValueError, match="seed=9"):
        plots.load_heatmap(six.routing, seed=9)


def test_device_load_marks_what_lies_over_capacity() -> None:
    loads = [[30, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10]]  # 12 experts on 4 devices: 50, 30, 30, 30 of 140
    rows = [("a", 0, 5, 1, i, i // 3, load) for i, load in enumerate(loads[0])]
    routing = pd.DataFrame(rows, columns=["arm", "seed", "step", "layer", "expert", "device", "load"])
    ax = plots.device_load(routing).axes[0]
    over = [bar for bar in ax.patches if bar.get_hatch()]
    assert [bar.get_height() for bar in over] == [pytest.approx(50 / 35 - 1)]  # type: ignore[attr-defined]
    assert f"{15 / 140:.1%} over" in [text.get_text() for text in ax.texts]


def test_arms_keep_the_order_of_the_study_and_only_those_that_route(six: Tables) -> None:
    part = six.routing[six.routing["arm"].isin(["paper", "none"])]
    assert routed(part, ["paper", "dense", "none"]) == ["paper", "none"]
    assert routed(part, None) == ["none", "paper"]


def test_dense_tables_have_no_load() -> None:
    routing = fake(("mha", "mla"), seeds=2, steps=4, dense=True).routing
    with pytest.raises(ValueError, match="dense"):
        plots.load_heatmap(routing)
    with pytest.raises(ValueError, match="dense"):
        plots.device_load(routing)
