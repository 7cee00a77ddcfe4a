"""The part of a report on learning rates: of a study that took them, of one that tried several, and of any other."""

from dataclasses import replace

import pytest

from ablations.reporting import figures
from ablations.reporting.findings import Findings
from ablations.reporting.rates import curves, curves_table, learning_rates
from ablations.reporting.sections import sections_of
from dsv2.study.rates import Curve
from tests.references.tables import fake


def curve(of: str, best: int) -> Curve:
    values = tuple((5.0 + abs(i - best) / 10, 5.2 + abs(i - best) / 10) for i in range(3))
    return Curve(of=of, metric="val/loss", better="lower", rates=(0.001, 0.002, 0.004), values=values)


@pytest.fixture
def plain(findings_of, study_text) -> Findings:
    """Three arms at rates that nobody looked for."""
    tables = fake(("none", "expert", "device"), seeds=3, steps=4)
    rates = {"none": 0.003, "expert": 0.003, "device": 0.003}
    return findings_of(tables, study_text(tables, {"val/loss": "lower"}, rates=rates))


def said(findings: Findings) -> str:
    section = learning_rates(findings)
    assert section is not None
    return section.paragraphs[0]


def test_rates_that_nobody_looked_for_are_said_to_be_so(plain: Findings) -> None:
    assert said(plain) == (
        "All arms have a learning rate of 0.003. No arm's own best rate was looked for, so that a difference between "
        "arms may be one in how well the rate suits them."
    )
    two = replace(plain, study=replace(plain.study, rates={"none": 0.003, "expert": 0.001, "device": 0.003}))
    assert said(two).startswith("Learning rates: 0.001 of expert; 0.003 of none, device. No arm's own best")
    assert "learning_rates" not in [picture.name for picture in figures.draw(plain)[0]]
    assert "Learning rates" in [section.title for section in sections_of(plain, [])]


def test_rates_of_another_study_come_with_what_it_measured(plain: Findings) -> None:
    taken = {"none": curve("none_lr*", 1), "expert": curve("expert_lr*", 2)}
    findings = replace(plain, study=replace(plain.study, curves=taken, lr_from="found"))
    section = learning_rates(findings)
    assert section is not None
    assert section.paragraphs == [
        "Arms are trained at the rate that was best of their own in found at this scale, by validation loss (2 seeds). "
        "Not so device (0.003)."
    ]
    (table,) = section.tables
    assert table.header == ["arm", "0.001", "0.002", "0.004", "best"]
    assert table.rows == [
        ["none", "5.200", "5.100", "5.200", "0.002"],
        ["expert", "5.300", "5.200", "5.100", "0.004, the last one tried: the best may lie beyond"],
    ]
    drawn = {picture.name: picture for picture in figures.draw(findings)[0]}
    assert "of found, mean and range over 2 seeds" in drawn["learning_rates"].caption


def test_a_study_that_tries_several_shows_its_own(plain: Findings) -> None:
    family = {"none*": {0.001: "none", 0.002: "expert", 0.004: "device"}}
    findings = replace(plain, study=replace(plain.study, families_of_rates=family))
    shown = curves(findings)
    losses = findings.finished.groupby("arm")["val/loss"].mean()
    assert shown["none*"].means == pytest.approx([losses[arm] for arm in ("none", "expert", "device")])
    assert said(findings).startswith("Each row is of arms that differ from one another in their learning rate alone.")
    table = curves_table(shown)
    assert len(table) == 9
    assert table["rate"].unique().tolist() == [0.001, 0.002, 0.004]
    assert "learning_rates" in [picture.name for picture in figures.draw(findings)[0]]


def test_a_study_with_missing_trials_shows_none_of_its_own(plain: Findings) -> None:
    family = {"none*": {0.001: "none", 0.002: "expert"}}
    results = plain.results.assign(status=["failed", *plain.results["status"][1:]])
    findings = replace(plain, study=replace(plain.study, families_of_rates=family), results=results)
    assert not curves(findings)
    assert said(findings).startswith("All arms have a learning rate")


def test_a_text_without_rates_has_no_section(plain: Findings) -> None:
    assert learning_rates(replace(plain, study=replace(plain.study, rates={}))) is None
