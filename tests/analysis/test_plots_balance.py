"""Figures of balance, drops and cost draw what the tables say."""

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import dsv2
from dsv2 import plots
from dsv2.plots.balance import CONTROLLED
from dsv2.routing.drops import drops_by_affinity
from tests.analysis.test_plots import SIX, Tables, assert_readable, fake

matplotlib.use("Agg")
TITLE = "A finding that is long enough to need a second line when it stands above a figure of a column's width"
FLOOR = {"routing/max_violation": 0.05, "routing/device_max_violation": 0.02, "routing/entropy": 0.999}


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def six() -> Tables:
    return fake(seeds=3, steps=4)


def routing(batch: int = 4, length: int = 64, experts: int = 16, tilt: float = 0.0) -> dsv2.Routing:
    """Of random affinities; `tilt` favours the first experts."""
    logits = torch.randn(batch, length, experts, generator=torch.Generator().manual_seed(0))
    affinities = (logits - tilt * torch.arange(experts)).softmax(-1)
    chosen, gates = dsv2.route(affinities, top_k=4)
    return dsv2.Routing(affinities, chosen, gates)


def dropped(tilt: float) -> pd.DataFrame:
    made = routing(tilt=tilt)
    return drops_by_affinity(made._replace(dropped=dsv2.drop(made, num_devices=4, capacity_factor=1.0)))


def overlapping_ticks(figure: Figure) -> list[tuple[str, str]]:
    """Neighbours on a horizontal axis whose labels touch."""
    figure.canvas.draw()
    found = []
    for ax in figure.axes:
        low, high = sorted(ax.get_xlim())
        ticks = [t for t in ax.xaxis.get_major_ticks() if low <= t.get_loc() <= high and t.label1.get_text()]
        shown = [tick.label1 for tick in ticks if tick.label1.get_visible()]
        boxes = [label.get_window_extent() for label in shown]
        found += [
            (a.get_text(), b.get_text())
            for a, b, left, right in zip(shown, shown[1:], boxes, boxes[1:], strict=False)
            if left.x1 > right.x0
        ]
    return found


def accounts() -> dict[str, dsv2.accounting.account.Account]:  # type: ignore[name-defined]
    models = {name: dsv2.load([f"model={name}"]).model for name in ("v2", "v2_lite", "deepseek_67b")}
    return {name: dsv2.account(model) for name, model in models.items()}


@pytest.mark.parametrize("arms", [SIX, ("none", "paper_dropping"), (*"abcdefg", "h_dropping")])
def test_every_figure_is_whole_and_readable(arms: tuple[str, ...]) -> None:
    tables = fake(arms, seeds=3, steps=4)
    published = pd.DataFrame({"name": ["theirs"], "active_params": [4e5], "value": [5.0]})
    last = int(tables.routing["step"].max())
    for drawn in (
        plots.losses_and_control(tables.results, floor=FLOOR, title=TITLE),
        plots.collapse_over_training(tables.metrics, floor=FLOOR, title=TITLE),
        plots.load_at(tables.routing, last, title=TITLE),
        plots.load_at(tables.routing, last, arms=arms[:1], title=TITLE),
        plots.drops_over_training(tables.metrics, title=TITLE),
        plots.drops_over_affinity({"even": dropped(0.0), "skewed": dropped(0.3)}, title=TITLE).figure,
        plots.loss_over_budgets(tables.metrics, tables.accounting, title=TITLE),
        plots.loss_over_active(tables.results, tables.accounting, published=published, title=TITLE).figure,
        plots.cache_over_context(accounts(), title=TITLE).figure,
    ):
        assert isinstance(drawn, Figure)
        assert_readable(drawn)
        assert not overlapping_ticks(drawn)
        assert all(ax.get_xlabel() or ax.get_label() == "<colorbar>" for ax in drawn.axes)


def test_overlapping_labels_would_be_seen() -> None:
    figure, ax = plt.subplots(figsize=(1, 1))
    ax.set_xticks([0, 0.1, 0.2], labels=["a long label"] * 3)
    assert overlapping_ticks(figure)


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
    assert titles == ["busiest expert / mean - 1", "entropy of load / log E", "experts without a token (share)"]
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
    assert [line.get_label() for line in over.lines] == list(SIX)
    assert [line.get_label() for line in drops.lines] == ["paper_dropping"]
    with pytest.raises(ValueError, match="no arm drops"):
        plots.drops_over_training(six.metrics[six.metrics["arm"] == "none"])


def test_groups_of_affinity_hold_every_pair_once() -> None:
    experts = torch.tensor([[[0, 1], [0, 1], [0, 1]]])
    affinities = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]])
    gates = affinities.gather(-1, experts)
    drops = torch.tensor([[[False, True], [False, False], [False, True]]])
    table = drops_by_affinity(dsv2.Routing(affinities, experts, gates, drops), bins=3)
    assert table["bin"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(table["low"], [0.1, 0.4, 0.7], rtol=1e-6)
    np.testing.assert_allclose(table["high"], [0.3, 0.6, 0.9], rtol=1e-6)
    assert table["pairs"].tolist() == [2, 2, 2]
    assert table["share"].tolist() == [1.0, 0.0, 0.0]


def test_on_one_device_the_lowest_affinities_go() -> None:
    made = routing()
    over = dsv2.drop(made, num_devices=1, capacity_factor=0.7)
    shares = drops_by_affinity(made._replace(dropped=over))["share"].tolist()
    assert shares[:2] == [1.0, 1.0]
    assert 0.9 < shares[2] <= 1.0  # the budget is rounded down, groups by rank
    assert max(shares[4:]) == 0.0
    with pytest.raises(ValueError, match="dropped=None"):
        drops_by_affinity(made)
    with pytest.raises(ValueError, match="bins=0"):
        drops_by_affinity(made._replace(dropped=over), bins=0)


def test_published_points_are_hollow_and_named(six: Tables) -> None:
    published = pd.DataFrame({"name": ["theirs"], "active_params": [4e5], "value": [5.0]})
    ax = plots.loss_over_active(six.results, six.accounting, published=published)
    hollow = next(line for line in ax.lines if line.get_label() == "published")
    assert hollow.get_markerfacecolor() == "white"
    assert [text.get_text() for text in ax.texts] == ["theirs"]
    with pytest.raises(ValueError, match="active_params of none"):
        plots.loss_over_active(six.results, six.accounting[1:])


def test_cache_grows_with_the_context_by_what_a_token_takes() -> None:
    ax = plots.cache_over_context(accounts(), longest=4096)
    v2 = next(line for line in ax.lines if str(line.get_label()).startswith("v2:"))
    length, size = (np.asarray(data)[-1] for data in v2.get_data())
    assert length == pytest.approx(4096)
    assert size == pytest.approx(4096 * 60 * (512 + 64) * 2)  # layers x (latent + RoPE) x bytes
    assert "69.1 kB a token" in str(v2.get_label())
