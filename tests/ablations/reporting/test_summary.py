"""A verdict says what its tables support and no more, and fits a terminal."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from ablations.reporting.findings import Findings
from ablations.reporting.summary import print_verdict, said, summary
from dsv2.report.terminal import open_console
from dsv2.statistics.verdicts import UNSEEN
from tests.references.tables import fake


@pytest.fixture
def narrow() -> Console:
    console = open_console()
    console.file, console.width = io.StringIO(), 80
    return console


def test_an_unseen_cost_is_not_called_absent(six_arms, findings_of) -> None:
    headline, sentences = summary(findings_of(six_arms))
    loss = next(text for text in sentences if text.startswith("validation loss"))
    assert "no visible cost or gain" in loss
    assert re.search(r"differences below 0\.\d+ may have been missed", loss)
    assert "equivalent" not in loss  # no margin was stated
    assert loss in headline
    assert sentences[0].startswith("load entropy")  # the study's own metric first


def test_nothing_is_unseen_where_no_seed_overlaps(study_text) -> None:
    """A mean of +0.09 with every seed above the baseline's is undecided, not invisible."""
    tables = fake(("base", "arm"), seeds=4, layers=1, steps=4)
    values = {"base": [3.06, 3.12, 3.09, 3.11], "arm": [3.13, 3.28, 3.22, 3.13]}
    tables.results["val/loss"] = np.concatenate(list(values.values()))
    findings = Findings(study=study_text(tables, {"val/loss": "lower"}, seeds=4), results=tables.results)
    (effect,) = findings.effects
    assert effect.low < 0 < effect.mean
    assert (effect.word, effect.separated) == ("undecided", "above")
    assert UNSEEN not in effect.note
    (sentence,) = summary(findings)[1]
    assert sentence.startswith("validation loss - undecided: arm (+0.095, no seed overlaps); differences below 0.")


def test_an_equivalent_arm_is_so_within_the_stated_margin(six_arms, study_text, findings_of) -> None:
    study = study_text(six_arms, {"val/loss": "lower"}, margin={"val/loss": 1.0})
    _, (sentence,) = summary(findings_of(six_arms, study))
    assert sentence.startswith("validation loss - equivalent within 1: expert (")
    assert UNSEEN not in sentence


def test_words_that_all_arms_share_are_one_sentence(study_text, findings_of) -> None:
    tables = fake(("none", "paper"), seeds=3, layers=1, steps=4)
    for metric in ("val/bpb", "val/accuracy"):
        tables.results[metric] = [1.0, 1.1, 1.2, 2.0, 2.11, 2.22]
    tables.results["routing/entropy"] = 0.5
    metrics = {"val/loss": "lower", "val/bpb": "lower", "val/accuracy": "higher", "routing/entropy": "higher"}
    headline, sentences = summary(findings_of(tables, study_text(tables, metrics, metric="val/loss")))
    assert len(sentences) == 4
    assert headline.startswith("Against none, 3 paired seeds, p < 0.05 after Holm's correction: validation loss - ")
    assert headline.endswith(
        "Every arm better in validation accuracy. Every arm worse in validation bits per byte. "
        "Every arm identical in load entropy."
    )


def test_there_is_no_verdict_without_a_result_a_second_seed_or_a_second_arm(six_arms, study_text, findings_of) -> None:
    results = six_arms.results.copy()
    results.loc[results["arm"] == "paper", "status"] = "failed"
    headline, sentences = summary(replace(findings_of(six_arms), results=results))
    missing = ", ".join(f"paper seed {seed} (failed)" for seed in range(3))
    assert (headline, sentences) == (f"No verdict: 3 of 18 trials have no result: {missing}.", [])
    headline, sentences = summary(findings_of(six_arms, study_text(six_arms, seeds=1)))
    assert headline.startswith("No verdict: one seed per arm gives no interval")
    assert sentences == []
    headline, sentences = summary(findings_of(six_arms, study_text(six_arms, arms={"none": "alone"})))
    assert headline.startswith("No verdict: no arm can be compared with the baseline")
    assert sentences == []


def test_what_is_said_is_how_arms_are_compared_then_a_sentence_per_metric(six_arms, study_text, findings_of) -> None:
    findings = findings_of(six_arms)
    assert said(findings) == [f"{findings.study.against}:", *summary(findings)[1]]
    single = findings_of(six_arms, study_text(six_arms, seeds=1))
    assert said(single) == [summary(single)[0]]


# ---- in a terminal ---------------------------------------------------------------------------------------------------


def test_the_terminal_table_fits_eighty_columns(six_arms, findings_of, narrow) -> None:
    print_verdict(findings_of(six_arms), narrow)
    output = narrow.file.getvalue()
    tables = output[: output.index("Against none")]
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    assert tables.count("paper_dropping │") == 2  # in both tables, whole
    assert "no visible cost" in output


def test_the_terminal_prints_what_is_said(six_arms, findings_of, console) -> None:
    findings = findings_of(six_arms)
    console.width = 1000
    print_verdict(findings, console)
    assert console.file.getvalue().splitlines()[-len(said(findings)) :] == said(findings)


def test_a_study_of_one_seed_prints_values_without_verdicts(six_arms, study_text, findings_of, narrow) -> None:
    print_verdict(findings_of(six_arms, study_text(six_arms, seeds=1)), narrow)
    output = narrow.file.getvalue()
    assert output.count("no verdict") == 5
    assert "baseline" in output
    assert "nan" not in output
