"""The first screen: whether the prediction held, by the verdicts alone, and what every cell of the matrix says."""

from dataclasses import replace

import pytest

from ablations.reporting.amounts import duration, large
from ablations.reporting.findings import Findings
from ablations.reporting.lead import lead_of, outcome
from dsv2.statistics.contrast import Contrast
from dsv2.statistics.verdicts import Effect
from tests.references.tables import fake


@pytest.fixture
def decided(six_arms, study_text, findings_of, monkeypatch):
    """Returns findings whose contrasts have these verdicts and predictions, as in [("better", "better")]."""

    def decided(*pairs: tuple[str, str | None]) -> Findings:
        arms = list(six_arms.accounting["arm"])[1:]
        contrasts = [
            Contrast(arm, "none", "val/loss", 0.02, predicted) for arm, (_, predicted) in zip(arms, pairs, strict=False)
        ]
        found = findings_of(six_arms, study_text(six_arms, contrasts=contrasts))
        effects = [
            Effect(c.arm, "none", "val/loss", 3, -0.1, 0.1, -0.2, -0.05, 0.02, word)
            for c, (word, _) in zip(contrasts, pairs, strict=True)
        ]
        vars(found)["verdicts"] = effects  # as cached
        return found

    return decided


@pytest.mark.parametrize(
    ("pairs", "held"),
    [
        ([("better", "better"), ("identical", "equivalent")], "Held."),
        ([("better", "better"), ("undecided", "equivalent")], "Held in part."),
        ([("undecided", "better")], "Not decided."),
        ([("worse", "better"), ("better", "better")], "Did not hold."),
        ([("equivalent", "better")], "Did not hold."),
        ([("better", None)], ""),
    ],
)
def test_a_prediction_holds_if_every_verdict_is_the_predicted_one(decided, pairs, held) -> None:
    assert outcome(decided(*pairs))[0] == held


def test_the_sentence_names_what_came_out_otherwise(decided) -> None:
    _, told = outcome(decided(("worse", "better"), ("undecided", "worse"), ("better", "better"), ("better", None)))
    assert told.startswith(
        "1 of 3 contrasts came out as predicted; validation loss of expert was predicted better and is worse; "
        "undecided: validation loss of device. Every interval is at "
    )
    assert outcome(decided(("better", None)))[1].startswith("Of 1 contrast: validation loss of expert better. Every")


def test_cells_are_framed_and_coloured_by_what_is_known(decided) -> None:
    found = decided(("better", "better"), ("undecided", None), ("equivalent", None))
    matrix = lead_of(found).matrix
    assert [row.name for row in matrix.rows][:3] == ["none (baseline)", "expert", "device"]
    loss = [row.cells[0] for row in matrix.rows]
    assert [(cell.tone, cell.confirmatory) for cell in loss[:4]] == [
        *[("value", False), ("better", True), ("undecided", True), ("equivalent", True)]
    ]
    assert (loss[1].text, loss[1].interval) == ("-0.100", "[-0.200, -0.050]")
    assert loss[1].hint.startswith(
        "expert - none, validation loss (nats/token)\n-0.100 [-0.200, -0.050], 3 seeds, better"
    )
    assert loss[1].hint.count("\nseed ") == 3
    exploratory = [cell for row in matrix.rows[1:] for cell in row.cells if not cell.confirmatory]
    assert {cell.tone for cell in exploratory} <= {"open", "maybe-better", "maybe-worse"}
    entropy = matrix.rows[1].cells[2]  # higher is better, and the loss evens out the load
    assert (entropy.tone, entropy.text[0]) == ("maybe-better", "+")


def test_without_verdicts_there_are_means_and_the_reason(study_text, findings_of) -> None:
    tables = fake(("none", "paper"), seeds=1, layers=1, steps=4)
    lead = lead_of(findings_of(tables, study_text(tables, seeds=1)))
    assert (lead.held, lead.told[:11]) == ("", "No verdict:")
    assert {cell.tone for row in lead.matrix.rows for cell in row.cells} == {"value"}
    empty = findings_of(tables, study_text(tables, seeds=1))
    nothing = replace(empty, results=tables.results.assign(status="unfinished"))
    assert lead_of(nothing).matrix is None
    assert dict(lead_of(nothing).cost)["trials finished"] == "0 of 2"


def test_the_cost_is_that_of_the_finished_trials(six_arms, findings_of) -> None:
    cost = dict(lead_of(findings_of(six_arms)).cost)
    assert cost["trials finished"] == "18 of 18"
    assert cost["training time, all trials"] == duration(18 * 14.0) == "4 min"
    assert cost["tokens trained on"] == large(18 * 60 * 1024) == "1.11M"
    assert cost["training FLOPs"] == f"{18 * 60 * 1024 * 2_654_208:.2e}"
