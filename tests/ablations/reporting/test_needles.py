"""What a report says of needles in a haystack: a section and two figures, if the study has the benchmark."""

from dataclasses import replace

import pandas as pd
import pytest

from ablations.reporting.figures import draw
from ablations.reporting.findings import Findings
from ablations.reporting.needles import needles
from ablations.reporting.sections import sections_of
from dsv2.report.page import markdown_table
from tests.references.tables import fake, fake_needles

ARMS = ("none", "yarn")


@pytest.fixture
def findings(study_text, findings_of) -> Findings:
    tables = fake(ARMS, seeds=3, steps=4, dense=True)
    study = study_text(tables, {"val/loss": "lower"})
    return replace(findings_of(tables, study, routing=False), needles=fake_needles(ARMS))


def test_shares_stand_by_length_with_their_intervals_and_by_wording(findings: Findings) -> None:
    section = needles(findings)
    assert section is not None
    assert section.title == "Exploratory: needle in a haystack"
    assert "5 depths, 6 questions at each depth and length" in section.paragraphs[0]
    assert "chance is 0.016" in section.paragraphs[0]
    lines = markdown_table(section.tables[0]).splitlines()
    assert lines[0] == "| arm | 128 | 256 | 512 |"
    of_yarn = findings.needles[(findings.needles["arm"] == "yarn") & (findings.needles["length"] == 512)]
    assert lines[3].startswith("| yarn |")
    assert f" {of_yarn['correct'].mean():.2f} [" in lines[3].split("|")[4].replace("\\", "")
    wordings = markdown_table(section.tables[1]).splitlines()
    assert wordings[0] == "| arm | wording 1 | wording 2 | wording 3 |"
    assert "3: I was told that" in section.tables[1].note
    assert section in sections_of(findings, [])


def test_only_the_studys_own_arms_and_seeds_are_shown(findings: Findings) -> None:
    other = fake_needles(("another",), lengths=(64,))
    more = fake_needles(ARMS, seeds=5)
    table = pd.concat([findings.needles, other, more[more["seed"] > 2]])
    assert needles(replace(findings, needles=table)) == needles(findings)


def test_a_share_that_all_seeds_have_has_no_interval(findings: Findings) -> None:
    section = needles(replace(findings, needles=findings.needles.assign(correct=True)))
    assert section is not None
    assert markdown_table(section.tables[0]).splitlines()[2] == "| none | 1.00 | 1.00 | 1.00 |"


def test_an_arm_without_a_finished_trial_has_an_empty_row(findings: Findings) -> None:
    section = needles(replace(findings, needles=findings.needles[findings.needles["arm"] == "yarn"]))
    assert section is not None
    assert section.tables[0].rows[0] == ["none", "", "", ""]


def test_figures_are_drawn_where_there_is_a_table(findings: Findings) -> None:
    drawn, failed = draw(findings)
    assert not failed
    assert {"needle_heatmap", "needle_over_length"} <= {picture.name for picture in drawn}
    drawn, failed = draw(replace(findings, needles=findings.needles.iloc[:0]))
    assert not failed
    assert not {"needle_heatmap", "needle_over_length"} & {picture.name for picture in drawn}
    assert needles(replace(findings, needles=findings.needles.iloc[:0])) is None
