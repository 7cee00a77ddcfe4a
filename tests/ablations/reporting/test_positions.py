"""The section of a report on loss by position."""

from dataclasses import replace

import pandas as pd
import pytest

from ablations.reporting import figures
from ablations.reporting.findings import Findings
from ablations.reporting.positions import by_position, trained_length
from ablations.reporting.sections import sections_of
from ablations.reporting.words import StudyText
from dsv2.metrics import BUDGETS
from dsv2.statistics.contrast import Contrast

ENDS = [64 * k for k in range(1, 17)]


@pytest.fixture
def findings() -> Findings:
    """Three seeds of two arms: one loses 0.1 nats at each doubling of the length, the other gains 0.01."""
    study = StudyText(
        name="extension",
        scale="smoke",
        question="How far?",
        prediction="Farther.",
        metric="bench/loss_8x",
        metrics={"bench/loss_8x": "lower"},
        equal=["tokens"],
        contrasts=[Contrast("yarn", "none", "bench/loss_8x", 0.02)],
        decided_at=3,
        baseline="none",
        arms={"none": "plain", "yarn": "extended"},
        seeds=(0, 1, 2),
    )
    rows = []
    for arm, step in (("none", 0.1), ("yarn", -0.01)):
        for seed in range(3):
            noise = [0.0, 0.01, 0.02][seed]
            at = {f"bench/loss_{2**k}x": 4.0 + noise + k * (step + noise / 10) for k in range(4)}
            row = {"arm": arm, "seed": seed, "status": "finished", "seconds": 1.0, "tokens": 10, "error": None}
            rows.append(row | at | {f"bench/loss_at_{end}": 4.0 for end in ENDS})
    accounting = pd.DataFrame({"arm": ["none", "yarn"], **{name: [10, 10] for name in BUDGETS}, "steps": [1, 1]})
    return Findings(study=study, results=pd.DataFrame(rows), accounting=accounting)


def test_losses_and_what_is_added_to_them(findings: Findings) -> None:
    section = by_position(findings)
    assert section is not None
    assert "trained length of 128 tokens" in section.paragraphs[0]
    (table,) = section.tables
    assert table.header == ["arm", "1x", "2x", "4x", "8x", "2x - 1x", "4x - 1x", "8x - 1x"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["none"][:2] == ["4.010 ± 0.010", "4.111 ± 0.011"]
    assert rows["none"][5].startswith("+0.202")
    assert rows["yarn"][5].startswith("-0.018")
    assert rows["yarn"][5].endswith("]")


def test_one_seed_has_no_interval(findings: Findings) -> None:
    one = replace(findings, study=replace(findings.study, seeds=(0,)))
    section = by_position(one)
    assert section is not None
    assert section.tables[0].rows[0][4:] == ["4.300", "+0.1", "+0.2", "+0.3"]


def test_only_studies_that_measure_it_have_the_section_and_the_figure(findings: Findings) -> None:
    assert trained_length(findings.finished) == 128
    assert "Loss by position" in [section.title for section in sections_of(findings, [])]
    assert "loss_by_position" in [picture.name for picture in figures.draw(findings)[0]]
    other = replace(findings, results=findings.results.drop(columns=[f"bench/loss_at_{end}" for end in ENDS]))
    assert trained_length(other.finished) == 0
    assert by_position(other) is None
    assert "loss_by_position" not in [picture.name for picture in figures.draw(other)[0]]
