"""Figures draw what the tables say, for six arms, for two, and for dense models."""

import io
from collections.abc import Iterator
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dsv2 import plots
from dsv2.plots.cost import AXES
from dsv2.statistics.verdicts import compare

matplotlib.use("Agg")

SIX = ("none", "expert", "device", "communication", "paper", "paper_dropping")
SKEW = {"none": 1.0, "expert": 0.35, "device": 0.55, "communication": 0.45, "paper": 0.2, "paper_dropping": 0.2}


class Tables(NamedTuple):
    results: pd.DataFrame
    metrics: pd.DataFrame
    routing: pd.DataFrame
    accounting: pd.DataFrame


def fake(
    arms: tuple[str, ...] = SIX,
    seeds: int = 6,
    layers: int = 2,
    experts: int = 32,
    devices: int = 8,
    steps: int = 20,
    top_k: int = 6,
    dense: bool = False,
) -> Tables:
    """Tables as a study of balance losses writes them, with the sizes of the prototype's noise."""
    rng = np.random.default_rng(0)
    results, metrics, routing = [], [], []
    start = {seed: rng.normal(0, 0.03) for seed in range(seeds)}
    for arm in arms:
        for seed in range(seeds):
            tilt = rng.normal(0, SKEW.get(arm, 1.0), (layers, experts))
            final: dict[str, float] = {}
            own = rng.normal(-0.017 * (arm != arms[0]), 0.02)
            for step in np.linspace(10, 10 * steps, steps).astype(int):
                tokens, done = int(step) * 1024, step / (10 * steps)
                loss = 5.0 + 2.6 * np.exp(-4 * done) + start[seed] + own * done + rng.normal(0, 0.004)
                logged = {
                    "train/loss": loss + rng.normal(0, 0.05),
                    "val/loss": loss,
                    "val/bpb": loss / 4.1 / np.log(2),
                    "train/lr": 3e-3,
                    "perf/tokens_per_s": 9e3 * (1 + 0.1 * rng.random()),
                }
                per_layer = []
                for layer in range(0 if dense else layers):
                    p = np.exp(tilt[layer] * min(3 * done, 1))
                    load = rng.multinomial(1024 * top_k, p / p.sum())
                    on = load.reshape(devices, -1).sum(1)
                    over = np.maximum(on - on.mean(), 0).sum() / on.sum()
                    measured = {
                        "max_violation": load.max() / load.mean() - 1,
                        "entropy": float(-(load / load.sum() * np.log(np.maximum(load, 1) / load.sum())).sum())
                        / np.log(experts),
                        "dead_experts": float((load == 0).mean()),
                        "device_max_violation": on.max() / on.mean() - 1,
                        "received_max_violation": 0.7 * (on.max() / on.mean() - 1),
                        "drop_rate": over * 0.9 if arm.endswith("dropping") else 0.0,
                        "overflow": over,
                        "devices_per_token": 3.0 - rng.random() * 0.01,
                    }
                    per_layer.append(measured)
                    for expert in range(experts):
                        row = {"arm": arm, "seed": seed, "step": int(step), "layer": layer + 1, "expert": expert}
                        where = {"device": expert // (experts // devices), "load": int(load[expert]), "dropped": 0}
                        routing.append(row | where | measured)
                for name in per_layer[0] if per_layer else ():
                    logged[f"routing/{name}"] = float(np.mean([layer[name] for layer in per_layer]))
                for name, value in logged.items():
                    metrics.append((arm, seed, int(step), tokens, name, value))
                final = {k: v for k, v in logged.items() if k.startswith(("val/", "routing/"))}
            base = {"arm": arm, "seed": seed, "fingerprint": f"{arm}{seed}", "status": "finished"}
            results.append(base | {"tokens": 10 * steps * 1024, "seconds": 14.0} | final)
    accounting = pd.DataFrame(
        {
            "arm": arms,
            "total_params": 651_264,
            "active_params": 412_992,
            "flops_per_token": 2_654_208 + np.arange(len(arms)) * 0,
            "kv_elements_per_token": 96,
            "tokens": 10 * steps * 1024,
            "steps": 10 * steps,
            "seeds": seeds,
        }
    )
    columns = ["arm", "seed", "step", "tokens", "metric", "value"]
    return Tables(pd.DataFrame(results), pd.DataFrame(metrics, columns=columns), pd.DataFrame(routing), accounting)


JUDGED = {"val/loss": "lower", "routing/max_violation": "lower"}


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def six() -> Tables:
    return fake(steps=8)


def ink(figure: Figure) -> np.ndarray:
    """The figure as (height, width) darkness, drawn at 100 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return 255 - np.asarray(Image.open(buffer).convert("L"), dtype=int)


def assert_readable(figure: Figure) -> None:
    """Nothing touches the border and no text is under 7 points."""
    dark = ink(figure)
    border = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
    assert border.max() == 0
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 7


@pytest.mark.parametrize(
    ("arms", "layers", "experts"), [(SIX, 2, 32), (("none", "paper"), 1, 32), (tuple("abcdefgh"), 1, 8)]
)
def test_every_figure_is_whole_and_readable(arms: tuple[str, ...], layers: int, experts: int) -> None:
    tables = fake(arms, seeds=3, layers=layers, experts=experts, steps=4)
    effects = [
        effect
        for metric, direction in JUDGED.items()
        for effect in compare(
            tables.results, metric, arms=arms, baseline=arms[0], seeds=range(3), direction=direction, resamples=0
        )
    ]
    title = "A finding that is long enough to need a second line when it stands above a figure of a column's width"
    for figure in (
        plots.loss_over_tokens(tables.metrics, train=True, title=title).figure,
        plots.difference_over_tokens(tables.metrics, arms[0], title=title).figure,
        plots.metric_by_arm(tables.results, "routing/max_violation", floor=0.05, title=title).figure,
        plots.forest(effects, margins={"val/loss": 0.02}, directions=JUDGED, title=title),
        plots.imbalance_over_training(tables.metrics, floor={"routing/max_violation": 0.05}, title=title),
        plots.load_heatmap(tables.routing, title=title),
        plots.device_load(tables.routing, title=title),
        plots.loss_over_budgets(tables.metrics, tables.accounting, title=title),
    ):
        assert isinstance(figure, Figure)
        assert_readable(figure)


def test_an_arm_looks_the_same_in_every_figure_and_unlike_every_other(six: Tables) -> None:
    part = six.metrics[six.metrics["arm"].isin(["device", "paper"])]
    whole = {line.get_label(): line for line in plots.loss_over_tokens(six.metrics, arms=SIX).lines}
    for line in plots.loss_over_tokens(part, arms=SIX).lines:
        assert line.get_color() == whole[line.get_label()].get_color()
    assert len({line.get_marker() for line in whole.values()}) == len(SIX)
    assert len({line.get_color() for line in whole.values()}) == len(SIX)


def test_curves_are_means_over_seeds(six: Tables) -> None:
    ax = plots.loss_over_tokens(six.metrics)
    line = next(line for line in ax.lines if line.get_label() == "paper")
    found = six.metrics[(six.metrics.metric == "val/loss") & (six.metrics.arm == "paper")]
    np.testing.assert_allclose(line.get_ydata(), found.groupby("tokens")["value"].mean())
    difference = plots.difference_over_tokens(six.metrics, "none")
    last = next(line for line in difference.lines if line.get_label() == "paper").get_ydata()[-1]  # type: ignore[index]
    final = six.results.groupby("arm")["val/loss"].mean()
    assert last == pytest.approx(final["paper"] - final["none"])
    assert "none" not in [line.get_label() for line in difference.lines]


def test_loss_over_budgets_moves_an_arm_by_what_a_token_costs(six: Tables) -> None:
    dear = six.accounting.assign(flops_per_token=[1e6, 2e6, 1e6, 1e6, 1e6, 1e6])
    tokens, flops, seconds = plots.loss_over_budgets(six.metrics, dear).axes
    lines = {line.get_label(): line for line in flops.lines}
    np.testing.assert_allclose(lines["expert"].get_xdata(), 2 * np.asarray(lines["none"].get_xdata()))
    shared = {line.get_label(): line for line in tokens.lines}["expert"]
    np.testing.assert_allclose(lines["expert"].get_ydata(), shared.get_ydata())
    assert [ax.get_xlabel() for ax in (tokens, flops, seconds)] == list(AXES.values())
    assert lines["reached by every trial"].get_xdata()[0] == 80 * 1024 * 1e6  # type: ignore[index]


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


def test_forest_fills_what_is_decided_and_shades_the_margin(six: Tables) -> None:
    effects = [
        effect
        for metric in JUDGED
        for effect in compare(
            six.results, metric, arms=SIX, baseline="none", seeds=range(6), direction="lower", resamples=0
        )
    ]
    figure = plots.forest(effects, margins={"val/loss": 0.02})
    loss, violation = figure.axes
    assert all(line.get_markerfacecolor() == "white" for line in loss.lines if line.get_marker() == "o")
    assert all(line.get_markerfacecolor() != "white" for line in violation.lines if line.get_marker() == "o")
    assert (len(loss.patches), len(violation.patches)) == (1, 0)


def test_imbalance_shows_the_drop_rate_only_where_something_is_dropped(six: Tables) -> None:
    titles = [ax.get_title(loc="left") for ax in plots.imbalance_over_training(six.metrics).axes]
    assert any("dropped" in title for title in titles)
    dropless = six.metrics[six.metrics["arm"] != "paper_dropping"]
    titles = [ax.get_title(loc="left") for ax in plots.imbalance_over_training(dropless).axes]
    assert titles
    assert not any("dropped" in title for title in titles)


def test_dense_tables_have_no_routing_figure() -> None:
    tables = fake(("mha", "mla"), seeds=2, steps=4, dense=True)
    with pytest.raises(ValueError, match="dense"):
        plots.imbalance_over_training(tables.metrics)
    with pytest.raises(ValueError, match="dense"):
        plots.load_heatmap(tables.routing)
    with pytest.raises(ValueError, match="dense"):
        plots.device_load(tables.routing)
