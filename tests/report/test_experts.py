"""Every analysis of a run's experts says what its tables hold, and what does not apply says why."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from dsv2.data.source import Batch, Source
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from dsv2.report.experts import ANALYSES, ModelOnText
from dsv2.routing.interventions import DoesNotApply
from dsv2.routing.observed import losses_of
from tests.references.figures import assert_readable
from tests.references.routing import LIMITED, build, text

matplotlib.use("Agg")


class Text(Source):
    """A source of nothing but one validation batch."""

    domains = ("code", "english")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def train(self, first: int, count: int) -> Batch:
        raise AssertionError("an analysis does not train")

    def validation(self) -> Batch:
        return self.batch


def subject(model: Transformer, batch: Batch | None = None, name: str = "run-s0", **more: object) -> ModelOnText:
    return ModelOnText(name, model, Text(batch or text()), batch_size=4, **more)  # type: ignore[arg-type]


def two_domains() -> Batch:
    batch = text(sequences=8)
    domains = torch.arange(8).ge(4).to(torch.int8)[:, None].expand_as(batch.inputs)
    return batch._replace(domains=domains)


def snapshots(layers: int, num_experts: int, top_k: int) -> pd.DataFrame:
    rows = [
        (step, layer, token, slot, (token + slot + step * (slot == 0)) % num_experts)
        for step in (0, 5, 10)
        for layer in range(layers)
        for token in range(12)
        for slot in range(top_k)
    ]
    return pd.DataFrame(rows, columns=["step", "layer", "token", "slot", "expert"])


@pytest.fixture(scope="module")
def run() -> ModelOnText:
    other = subject(build(MoE.Config(num_experts=8, top_k=2, expert_dim=8), seed=1), two_domains(), "other-s0")
    return subject(build(LIMITED), two_domains(), snapshots=snapshots(2, 16, 4), against=other)


@pytest.mark.parametrize("name", list(ANALYSES))
def test_every_analysis_has_a_finding_tables_and_readable_figures(run: ModelOnText, name: str) -> None:
    analysis = ANALYSES[name](run)
    assert analysis.title.endswith("?")
    assert any(letter.isdigit() for letter in analysis.finding)
    assert "nan" not in analysis.finding
    assert analysis.tables
    assert all(len(table) for table in analysis.tables.values())
    assert set(analysis.figures) <= {*analysis.tables, "expert_tokens"}
    for figure in analysis.figures.values():
        assert isinstance(figure, Figure)
        assert_readable(figure)
    plt.close("all")


def test_losses_are_those_of_the_models_on_the_validation_text(run: ModelOnText) -> None:
    plain = losses_of(run.model, run.validation, batch_size=4).mean
    for name, first in (("shared", "as trained"), ("fewer", 4)):
        table = ANALYSES[name](run).tables[name]
        assert table.iloc[0, 0] == first
        assert table["loss"][0] == plain
        assert f"{plain:.3f}" in ANALYSES[name](run).finding
    fewer = ANALYSES["fewer"](run).tables["fewer"]
    assert fewer["active_width"].tolist() == [(2 + k) * 8 for k in (4, 3, 2, 1)]
    plt.close("all")


def test_two_runs_are_compared_on_the_same_text(run: ModelOnText) -> None:
    redundancy = ANALYSES["redundancy"](run).tables["redundancy"]
    assert redundancy.groupby("run")["masked"].max().to_dict() == {"run-s0": 4, "other-s0": 2}
    assert redundancy.groupby("run")["ratio"].max().to_dict() == {"run-s0": 0.25, "other-s0": 0.25}
    assert run.against is not None
    other = losses_of(run.against.model, run.validation, batch_size=4).mean
    assert f"other-s0 has {other:.3f} at an active width of 16" in ANALYSES["fewer"](run).finding
    plt.close("all")


def test_one_pass_serves_all_analyses(run: ModelOnText) -> None:
    assert run.observed is run.observed
    assert run.observed.experts.shape == (2, 8, 10, 4)


@pytest.mark.parametrize(
    ("name", "model", "why"),
    [
        *((name, build(SwiGLU.Config(width=8)), "a dense model has no routing") for name in ANALYSES),
        ("shared", build(MoE.Config(num_experts=8, top_k=2, expert_dim=8)), "no shared experts"),
        ("fewer", build(MoE.Config(num_experts=8, top_k=1, expert_dim=8)), "fewer than its 1 experts"),
        ("domains", build(LIMITED), "fewer than two domains"),
        ("coactivation", build(MoE.Config(num_experts=8, top_k=1, expert_dim=8)), "one expert"),
        ("saturation", build(LIMITED), "recorded no routing snapshots"),
    ],
)
def test_what_does_not_apply_says_why(name: str, model: Transformer, why: str) -> None:
    with pytest.raises(DoesNotApply, match=why):
        ANALYSES[name](subject(model))


def test_a_number_in_a_sentence_is_that_of_its_table(run: ModelOnText) -> None:
    analysis = ANALYSES["router"](run)
    top = analysis.tables["router"]["top_gate"].mean()
    assert analysis.finding.endswith(f"the top gate is {top:.0%} of the sum of the chosen gates.")
    settled = ANALYSES["saturation"](run)
    half = settled.tables["saturation"].query("step == 5")["overlap"].mean()
    assert np.isclose(half, 0.75, atol=0.05)
    assert settled.finding.startswith(f"Halfway through training {half:.0%} of a token's experts are its final ones")
    plt.close("all")


COLLAPSED = MoE.Config(num_experts=4, top_k=4, expert_dim=8)  # every token has all experts


@pytest.mark.parametrize(
    ("config", "apply"),
    [
        (MoE.Config(num_experts=1, top_k=1, expert_dim=8, num_shared=1), {"shared"}),
        (COLLAPSED, {"fewer", "router", "saturation"}),
    ],
)
def test_experts_without_a_choice_have_nothing_to_analyse(config: MoE.Config, apply: set[str]) -> None:
    """Each analysis applies or says why not; no number is NaN."""
    run = subject(build(config), two_domains(), snapshots=snapshots(2, config.num_experts, config.top_k))
    applied = set()
    for name, analyse in ANALYSES.items():
        try:
            analysis = analyse(run)
        except DoesNotApply:
            continue
        applied.add(name)
        assert "nan" not in analysis.finding
        assert not analysis.problems
    assert applied == apply
    plt.close("all")


def test_a_layer_without_a_choice_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    run = subject(build(MoE.Config(num_experts=8, top_k=2, expert_dim=8)), two_domains())
    collapsed = run.observed.experts.copy()
    collapsed[0] = [0, 1]
    run.__dict__["observed"] = run.observed._replace(experts=collapsed)
    table = ANALYSES["tokens"](run).tables["tokens"]
    assert table["share_of_most"].isna().tolist() == [True, False]
    assert f"In layer {run.observed.layers[1]}," in ANALYSES["tokens"](run).finding
    plt.close("all")


def test_a_figure_that_cannot_be_drawn_leaves_its_tables(run: ModelOnText, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Figure:
        raise KeyError("layer\nand more")

    monkeypatch.setattr("dsv2.plots.experts.information_bars", broken)
    analysis = ANALYSES["tokens"](run)
    assert analysis.problems == ["The figure tokens could not be drawn: KeyError: 'layer\\nand more'."]
    assert set(analysis.figures) == {"expert_tokens"}
    assert set(analysis.tables) == {"tokens", "expert_tokens"}
    plt.close("all")
