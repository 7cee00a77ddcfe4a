"""A verdict says what its tables support and no more, and fits a terminal."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from ablations.reporting.summary import against, look_text, print_verdict, said, summary
from ablations.trials.looks import first_look
from dsv2.report.terminal import open_console
from dsv2.statistics.verdicts import Contrast
from tests.references.tables import SIX


@pytest.fixture
def narrow() -> Console:
    console = open_console()
    console.file, console.width = io.StringIO(), 80
    return console


def test_every_contrast_has_a_sentence_and_nothing_else_has(six_arms, findings_of) -> None:
    headline, sentences = summary(findings_of(six_arms))
    assert headline.startswith(
        "Against none, 3 paired seeds, look 1, each interval at 99.2%: validation loss, expert - "
    )
    assert [text.partition(" - ")[0] for text in sentences] == [f"validation loss, {arm}" for arm in SIX[1:]]
    assert all(text in headline for text in sentences)
    undecided = next(text for text in sentences if " undecided: " in text)
    assert re.search(
        r"\[-.*\]; a cost of up to 0\.\d+ and a gain of up to 0\.\d+ are possible; margin 0.02\.$", undecided
    )
    assert not re.search("detected|missed|visible|entropy|violation", headline)


def test_an_equivalent_arm_is_so_within_its_margin(six_arms, study_text, findings_of) -> None:
    study = study_text(six_arms, contrasts=[Contrast("expert", "none", "val/loss", 1.0)])
    headline, (sentence,) = summary(findings_of(six_arms, study))
    assert re.fullmatch(r"validation loss, expert - equivalent: .* \[.*\]; within the margin 1\.", sentence)
    assert headline.startswith("Against none, 3 paired seeds, look 1, interval at 96%: ")


def test_changed_contrasts_leave_everything_exploratory(six_arms, findings_of) -> None:
    look = first_look(range(3), 3, 5)._replace(refused="the contrasts changed after the first look: x was added")
    findings = replace(findings_of(six_arms), recorded=look)
    assert findings.verdicts == []
    assert len(findings.effects) == 5 * 3
    assert summary(findings) == (
        "No verdict, all of it is exploratory: the contrasts changed after the first look: x was added.",
        [],
    )


def test_the_look_is_said(six_arms, findings_of) -> None:
    findings = findings_of(six_arms)
    text = look_text(findings)
    assert "This is look 1, at 3 of the 3 seeds at which the study is decided." in text
    assert (
        "Its verdicts may err in 4.00% of studies, shared by 5 contrasts, and those of all looks in at most 5%" in text
    )
    assert "extended" not in text
    later = first_look(range(3), 2, 5)._replace(number=2, error=0.001, elsewhere=1)
    text = look_text(replace(findings, recorded=later))
    assert "This is look 2, at 3 seeds; the study was to be decided at 2. Its verdicts may err in 0.50%" in text
    assert "extended or changed after a look, which a group-sequential rule accounts for" in text
    assert "1 look at this study with other settings" in text


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
    assert headline == "No verdict: the study compares no arm with another."
    assert sentences == []


def test_what_is_said_is_how_arms_are_compared_then_a_sentence_per_contrast(six_arms, study_text, findings_of) -> None:
    findings = findings_of(six_arms)
    assert said(findings) == [f"{against(findings)}:", *summary(findings)[1]]
    single = findings_of(six_arms, study_text(six_arms, seeds=1))
    assert said(single) == [summary(single)[0]]


# ---- in a terminal ---------------------------------------------------------------------------------------------------


def test_the_terminal_tables_fit_eighty_columns(six_arms, findings_of, narrow) -> None:
    print_verdict(findings_of(six_arms), narrow)
    output = narrow.file.getvalue()
    tables = output[: output.index("Against none")]
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    assert tables.count("paper_dropping") == 3  # in the contrasts, the loss and the other metrics, whole


def test_words_are_of_contrasts_only(six_arms, study_text, findings_of, console) -> None:
    study = study_text(six_arms, contrasts=[Contrast("paper", "none", "routing/max_violation", 0.1)])
    print_verdict(findings_of(six_arms, study), console)
    exploratory = console.file.getvalue().partition("exploratory")[2].partition("Against none")[0]
    assert "paper" in exploratory
    assert not re.search("better|worse|equivalent|undecided|identical", exploratory)


def test_the_terminal_prints_what_is_said(six_arms, findings_of, console) -> None:
    findings = findings_of(six_arms)
    console.width = 1000
    print_verdict(findings, console)
    lines = [*said(findings), look_text(findings)]
    assert console.file.getvalue().splitlines()[-len(lines) :] == lines


def test_a_study_of_one_seed_prints_values_without_verdicts(six_arms, study_text, findings_of, narrow) -> None:
    print_verdict(findings_of(six_arms, study_text(six_arms, seeds=1)), narrow)
    output = narrow.file.getvalue()
    assert "No verdict: one seed" in output
    assert "contrasts" not in output
    assert "nan" not in output
