"""A report has the figures that its tables allow, and no other."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

from ablations.reporting import figures
from ablations.reporting.findings import Findings
from ablations.reporting.words import StudyText
from dsv2.report.page import Picture
from tests.references.tables import SIX, fake

ROUTED = {
    "effects",
    "val_loss_by_arm",
    "routing_entropy_by_arm",
    "loss",
    "loss_difference",
    "imbalance",
    "expert_load",
    "device_load",
}


def draw(findings: Findings) -> list[Picture]:
    """The figures, none of which fails."""
    pictures, problems = figures.draw(findings)
    assert not problems
    return pictures


def test_a_figure_that_fails_leaves_the_others(six_arms, findings_of, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        plt.figure()
        raise ZeroDivisionError("no load")

    monkeypatch.setattr(figures, "load_heatmap", fail)
    pictures, problems = figures.draw(findings_of(six_arms))
    assert {picture.name for picture in pictures} == ROUTED - {"expert_load"}
    assert problems == ["The figure expert_load could not be drawn: ZeroDivisionError: no load."]
    assert not plt.get_fignums()


def test_a_study_of_experts_has_every_figure(six_arms, findings_of) -> None:
    pictures = draw(findings_of(six_arms))
    assert {picture.name for picture in pictures} == ROUTED
    assert all(picture.png.startswith(b"\x89PNG") and len(picture.png) > 5_000 for picture in pictures)
    assert all(picture.caption.endswith(".") for picture in pictures)
    assert not plt.get_fignums()
    captions = {picture.name: picture.caption for picture in pictures}
    assert "Each arm minus none" in captions["effects"]
    assert "mean and range over 3 seeds" in captions["loss"]
    assert captions["imbalance"].endswith("dashed: a random router.")


def test_budgets_are_drawn_where_they_say_more_than_tokens(six_arms, findings_of) -> None:
    dear = six_arms.accounting.assign(flops_per_token=[1, 2, 3, 4, 5, 6])
    captions = {picture.name: picture.caption for picture in draw(replace(findings_of(six_arms), accounting=dear))}
    assert captions["budgets"].startswith(
        "Validation loss over tokens and training FLOPs, mean and range over 3 seeds."
    )
    assert captions["budgets"].endswith(" Seconds vary between trials of one arm as much as between arms.")


def test_dense_studies_have_no_routing_figures(study_text, findings_of) -> None:
    tables = fake(("mha", "mla"), seeds=3, steps=4, dense=True)
    names = [
        picture.name for picture in draw(findings_of(tables, study_text(tables, {"val/loss": "lower"}), routing=False))
    ]
    assert sorted(names) == sorted({"effects", "loss", "loss_difference", "val_loss_by_arm"})


def test_one_seed_has_no_effects_and_no_floor_no_dashes(study_text, findings_of) -> None:
    tables = fake(("none", "paper"), seeds=1, layers=1, steps=4)
    pictures = draw(replace(findings_of(tables, study_text(tables, seeds=1)), step_floor={}))
    assert {picture.name for picture in pictures} == ROUTED - {"effects"}
    assert "dashed" not in next(picture.caption for picture in pictures if picture.name == "imbalance")
    assert "one seed" in next(picture.caption for picture in pictures if picture.name == "loss")


def test_each_baseline_has_a_curve_of_differences(six_arms, study_text, findings_of) -> None:
    losses = six_arms.metrics[six_arms.metrics["metric"] == "val/loss"]

    def differences(study: StudyText) -> set[str]:
        pictures = draw(replace(findings_of(six_arms, study, routing=False), metrics=losses))
        return {picture.name for picture in pictures if "difference" in picture.name}

    two = study_text(six_arms, {"val/loss": "lower"}, baselines={"paper": "device", "device": "device"})
    assert differences(two) == {"loss_difference", "loss_difference_device"}
    alone = study_text(six_arms, {"val/loss": "lower"}, baselines=dict(zip(SIX, SIX, strict=True)))
    assert differences(alone) == set()
    last = losses["step"].max()
    losses = losses[losses["arm"].isin(["none", "device", "paper"]) | (losses["step"] == last)]
    assert differences(two) == {"loss_difference_device"}  # against none there is nothing but points


@pytest.mark.parametrize(("identical", "name"), [(True, "false_verdicts"), (False, "factors")])
def test_special_studies_have_their_own_figure(study_text, findings_of, identical, name) -> None:
    arms = ("low_off", "low_on", "high_off", "high_on")
    tables = fake(arms, seeds=4, layers=1, steps=4)
    levels = {arm: dict(zip(("lr", "expert"), arm.split("_"), strict=True)) for arm in arms}
    study = study_text(
        tables, {"val/loss": "lower"}, seeds=4, identical=arms if identical else (), levels={} if identical else levels
    )
    names = {picture.name for picture in draw(findings_of(tables, study))}
    assert names & {"false_verdicts", "factors"} == {name}


def test_a_study_that_has_trained_nothing_has_no_figure(six_arms, findings_of) -> None:
    empty = replace(
        findings_of(six_arms, routing=False), results=six_arms.results.iloc[:0], metrics=six_arms.metrics.iloc[:0]
    )
    assert draw(empty) == []
