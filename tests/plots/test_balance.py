"""Figures of balance and drops draw what the tables say."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dsv2 import plots
from dsv2.metrics import quantity
from dsv2.plots.balance import COLLAPSE, CONTROLLED
from tests.references.figures import TITLE, assert_readable, overlapping_ticks, seen
from tests.references.tables import SIX, Tables, fake

FLOOR = {"routing/max_violation": 0.05, "routing/device_max_violation": 0.02, "routing/entropy": 0.999}


def groups(shares: list[float], pairs: int = 100) -> pd.DataFrame:
    """A table of `drops_by_affinity` with equal groups, of which these shares are dropped."""
    table = pd.DataFrame({"bin": np.arange(1, len(shares) + 1), "share": shares})
    return table.assign(pairs=pairs, dropped=table["share"] * pairs)


@pytest.mark.parametrize("arms", [SIX, ("none", "paper_dropping"), (*"abcdefg", "h_dropping")])
def test_every_figure_is_whole_and_readable(arms: tuple[str, ...]) -> None:
    tables = fake(arms, seeds=3, steps=4)
    last = int(tables.routing["step"].max())
    drops = {"even": groups([0.2, 0.1, *[0.0] * 8]), "skewed": groups(list(np.linspace(1, 0, 10)))}
    for figure in (
        plots.losses_and_control(tables.results, floor=FLOOR, title=TITLE),
        plots.collapse_over_training(tables.metrics, floor=FLOOR, title=TITLE),
        plots.load_at(tables.routing, last, title=TITLE),
        plots.load_at(tables.routing, last, arms=arms[:1], title=TITLE),
        plots.drops_over_training(tables.metrics, title=TITLE),
        plots.drops_over_affinity(drops, title=TITLE).figure,
    ):
        assert isinstance(figure, Figure)
        assert_readable(figure)
        assert not overlapping_ticks(figure)
        assert all(ax.get_xlabel() or ax.get_label() == "<colorbar>" for ax in figure.axes)


def test_control_marks_the_lowest_mean_of_each_target(six: Tables) -> None:
    figure = plots.losses_and_control(six.results, floor=FLOOR)
    means = six.results.groupby("arm")[list(CONTROLLED)].mean()
    for ax, metric in zip(figure.axes, CONTROLLED, strict=True):
        (band,) = ax.patches
        assert SIX[round(band.get_y() + band.get_height() / 2)] == means[metric].idxmin()  # type: ignore[attr-defined]
        assert len(ax.lines) == 2 * len(SIX) + (metric in FLOOR)
    with pytest.raises(ValueError, match="dense"):
        plots.losses_and_control(six.results[["arm", "seed", "val/loss"]])


def test_collapse_shows_entropy_too(six: Tables) -> None:
    titles = [ax.get_title(loc="left") for ax in plots.collapse_over_training(six.metrics).axes]
    assert titles == [quantity(metric).label for metric in COLLAPSE]
    with pytest.raises(ValueError, match="dense"):
        plots.collapse_over_training(fake(("a",), seeds=1, steps=4, dense=True).metrics)


def test_load_at_a_step_is_that_of_its_table(six: Tables) -> None:
    figure = plots.load_at(six.routing, 20, seed=1, arms=["paper"])
    (mesh,) = figure.axes[0].collections
    rows = six.routing[(six.routing.arm == "paper") & (six.routing.seed == 1) & (six.routing.step == 20)]
    load = rows.sort_values(["layer", "expert"])["load"].to_numpy(dtype=float).reshape(2, 32)
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(2, 32), load / load.mean(1, keepdims=True))
    assert len(figure.axes[0].lines) == 7  # between eight devices
    with pytest.raises(ValueError, match="step=3, seed=0"):
        plots.load_at(six.routing, 3)
    one_layer = plots.load_at(six.routing[six.routing["layer"] == 1], 20, arms=["paper"])
    box = one_layer.axes[0].collections[0].get_datalim(one_layer.axes[0].transData)
    assert (box.width, box.height) == (32, 1)  # one row of cells is drawn too
    assert [tick for tick in one_layer.axes[0].get_yticks() if 0.5 <= tick <= 1.5] == [1]


def test_the_slider_draws_the_step_it_stands_at(six: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = plots.load_at

    def spy(routing: pd.DataFrame, step: int, **how: object) -> Figure:
        drawn.append((step, how["seed"]))
        return real(routing, step, seed=how["seed"])  # type: ignore[arg-type]

    monkeypatch.setattr("dsv2.plots.balance.load_at", spy)
    view = plots.load_view(six.routing)
    controls, canvas = view.children  # type: ignore[attr-defined]
    steps, seeds = controls.children
    steps.value = 30
    seeds.value = 2
    assert drawn == [(10, 0), (30, 0), (30, 2)]
    assert bytes(canvas.value).startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_drops_are_drawn_for_the_arms_that_drop(six: Tables) -> None:
    over, drops = plots.drops_over_training(six.metrics).axes
    assert [line.get_label() for line in seen(over)] == list(SIX)
    assert [line.get_label() for line in seen(drops)] == ["paper_dropping"]
    with pytest.raises(ValueError, match="no arm drops"):
        plots.drops_over_training(six.metrics[six.metrics["arm"] == "none"])


def test_drops_are_drawn_by_affinity_beside_what_blind_dropping_would_take() -> None:
    ax = plots.drops_over_affinity({"capacity 0.5": groups([1.0, 0.5, 0.0, 0.0])})
    line, blind = (
        next(line for line in ax.lines if line.get_label() == label) for label in ("capacity 0.5", "_child1")
    )
    assert list(np.asarray(line.get_ydata())) == [1.0, 0.5, 0.0, 0.0]
    assert list(np.asarray(blind.get_ydata())) == [0.375, 0.375]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["lowest", "2", "3", "highest"]
    ax = plots.drops_over_affinity({"all in one": groups([0.25])})
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["lowest"]
