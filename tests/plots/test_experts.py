"""Figures of the analyses draw what their tables say, for two layers and for many, and are readable."""

import numpy as np
import pandas as pd
import pytest

from dsv2 import plots
from tests.references.analyses import changes, grid, masked, shares
from tests.references.figures import TITLE, assert_readable


def pairs(layers: list[int], experts: int) -> pd.DataFrame:
    table = grid(layers, experts, other=list(range(experts)))
    return table[table["expert"] < table["other"]].assign(ratio=lambda t: 2 ** (6 * t["value"] - 3))


def per_layer(layers: list[int], *names: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": layers} | {name: np.linspace(0.1 + 0.2 * i, 0.9, len(layers)) for i, name in enumerate(names)}
    )


def overlaps(layers: list[int]) -> pd.DataFrame:
    rows = [(layer, step, 0.2 + step / 500, 0.2) for layer in layers for step in range(0, 401, 50)]
    return pd.DataFrame(rows, columns=["layer", "step", "overlap", "chance"])


@pytest.mark.parametrize(("layers", "experts"), [([1, 2], 32), ([1], 8), (list(range(1, 27)), 64)])
def test_every_figure_is_whole_and_readable(layers: list[int], experts: int) -> None:
    concentrated = grid(layers, experts).rename(columns={"value": "concentration"}).assign(chance=0.3)
    interventions = ["as trained", "shared off", "one more routed", "shared off, one more routed"]
    for figure in (
        plots.loss_changes(changes(interventions), title=TITLE),
        plots.loss_over_masked(pd.concat([masked("DeepSeekMoE-s0"), masked("gshard-s0")]), title=TITLE),
        plots.loss_over_experts(
            changes([6, 5, 4, 3, 2, 1]).rename(columns={"model": "experts"}), against=("gshard-s0", 2.1), title=TITLE
        ),
        plots.domain_heatmap(shares(layers, experts), title=TITLE),
        plots.information_bars(per_layer(layers, "chance", "information", "most"), "domain", title=TITLE),
        plots.token_concentration(concentrated, title=TITLE),
        plots.coactivation_heatmap(pairs(layers, experts), title=TITLE),
        plots.certainty_over_layers(
            per_layer(layers, "top_gate", "chosen_mass", "entropy_token", "entropy_mean"), title=TITLE
        ),
        plots.overlap_over_training(overlaps(layers), title=TITLE),
    ):
        assert_readable(figure)


def test_changes_are_drawn_with_their_intervals() -> None:
    ax = plots.loss_changes(changes(["as trained", "shared off", "both"])).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["shared off", "both"]
    np.testing.assert_allclose(ax.containers[0].lines[0].get_xdata().astype(float), [0.3, 0.6])
    ends = [segment[:, 0] for segment in ax.containers[0].lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[0.27, 0.33], [0.54, 0.66]])
    infinite = changes(["as trained", "shared off"]).assign(low=-np.inf, high=np.inf)  # of a single sequence
    assert_readable(plots.loss_changes(infinite))


def test_a_run_has_a_line_and_two_have_a_legend() -> None:
    assert plots.loss_over_masked(masked("a")).axes[0].get_legend() is None
    ax = plots.loss_over_masked(pd.concat([masked("a"), masked("b")])).axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), masked("a")["difference"])


def test_experts_stand_with_the_domain_that_they_favour() -> None:
    table = pd.DataFrame(
        [(1, "code", 0, 0.1), (1, "maths", 0, 1.9), (1, "code", 1, 1.9), (1, "maths", 1, 0.1)],
        columns=["layer", "domain", "expert", "lift"],
    )
    ax = plots.domain_heatmap(table).axes[0]
    np.testing.assert_allclose(np.asarray(ax.collections[0].get_array()).reshape(2, 2), [[1.9, 0.1], [0.1, 1.9]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "0"]


def test_experts_chosen_together_stand_together() -> None:
    rows = [(1, i, j, 6.0 if (i, j) in ((0, 2), (1, 3)) else 0.5) for i in range(4) for j in range(i + 1, 4)]
    ax = plots.coactivation_heatmap(pd.DataFrame(rows, columns=["layer", "expert", "other", "ratio"])).axes[0]
    order = [label.get_text() for label in ax.get_xticklabels()]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("02"), frozenset("13")}


def test_of_many_layers_six_are_shown() -> None:
    table = grid(list(range(26)), 8).rename(columns={"value": "concentration"}).assign(chance=0.3)
    titles = [ax.get_title(loc="left") for ax in plots.token_concentration(table).axes]
    assert titles == [f"layer {layer}" for layer in (0, 5, 10, 15, 20, 25)]


def test_few_bars_stand_in_the_middle() -> None:
    for layers in ([1], [1, 2], list(range(1, 6))):
        low, high = (
            plots.information_bars(per_layer(layers, "chance", "information", "most"), "domain").axes[0].get_xlim()
        )
        assert low + high == pytest.approx(len(layers) - 1)
        assert high - low == pytest.approx(max(len(layers), 3) + 0.2)
