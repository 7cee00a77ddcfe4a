"""The sections of a report: paragraphs and tables that say what was found."""

import math
import re
from dataclasses import replace

from ablations.reporting.findings import Findings
from ablations.reporting.sections import sections_of
from ablations.trials.looks import Past, first_look
from dsv2.report.page import Section, markdown_table
from dsv2.report.pictures import Picture
from dsv2.statistics.paired import detectable_in_sd, sd_limit, seeds_needed
from tests.references.tables import fake


def section(findings: Findings, title: str) -> Section:
    return next(section for section in sections_of(findings, []) if section.title == title)


def table(findings: Findings, title: str) -> str:
    """The table of a section, in Markdown."""
    return markdown_table(section(findings, title).tables[0])


def test_figures_come_first_then_verdicts_and_what_they_rest_on(six_arms, findings_of) -> None:
    drawn = [Picture("loss", "Loss.", b"png", 100)]
    sections = sections_of(findings_of(six_arms), drawn)
    assert [section.title for section in sections] == [
        "Figures",
        "Verdicts",
        "Arms",
        "Results by arm",
        "Exploratory: other differences",
        "Per token, per FLOP and per second",
        "Planning",
        "Held equal",
        "Published",
        "Where the effect is expected to show",
        "Accounting",
        "Names and units",
        "Provenance",
    ]
    assert sections[0].pictures == drawn


def test_verdicts_are_of_contrasts_and_the_rest_has_none(six_arms, findings_of) -> None:
    findings = findings_of(six_arms)
    rows = table(findings, "Verdicts").splitlines()[2:]
    words = "better|worse|equivalent|undecided|identical"
    assert [re.search(rf"\| 0\.020 \| ({words}) \|$", row) is not None for row in rows] == [True] * 5
    rest = section(findings, "Exploratory: other differences")
    assert not re.search(rf"{words}|verdict|p =", markdown_table(rest.tables[0]))
    assert len(rest.tables[0].rows) == 10
    assert not any(row[0] == "validation loss" for row in rest.tables[0].rows)


def test_earlier_looks_are_told(six_arms, findings_of) -> None:
    first = Past((0, 1), "2026-11-26T10:00:00+00:00", 0.0002, {"expert, val/loss": "undecided"})
    second = Past((0, 1, 2), "2026-11-27T10:00:00+00:00", 0.04, {})
    look = first_look(range(3), 3, 5)._replace(number=2, past=(first, second))
    looks = markdown_table(section(replace(findings_of(six_arms), recorded=look), "Verdicts").tables[1])
    assert "| 1 | 2026-11-26T10:00:00+00:00 | 0, 1 | 0.02% | expert, val/loss: undecided |" in looks
    assert "| 2 (this one) | 2026-11-27T10:00:00+00:00 | 0, 1, 2 | 4.00% |" in looks


def test_budgets_are_compared_among_the_arms_that_hold_them(study_text, findings_of) -> None:
    tables = fake(("none", "paper", "wide"), seeds=2, layers=1, steps=4)
    tables.accounting["total_params"] = [1000, 995, 2000]
    study = study_text(tables, seeds=2, differs={"wide": ("total_params",)})
    held = table(findings_of(tables, study), "Held equal")
    assert "| parameters | yes, except wide | 995 | 1,000 | 0.50% apart |" in held
    held = table(findings_of(tables, replace(study, baselines={"wide": "wide"}, differs={})), "Held equal")
    assert "| parameters | yes | 995 | 2,000 | 0.50% apart |" in held  # another size is no side of a comparison
    assert "| training tokens | yes | 40,960 | 40,960 | equal |" in held
    assert "| FLOPs per token |  | 2,654,208 | 2,654,208 | equal |" in held


def test_arms_that_begin_beyond_the_budgets_of_others_are_not_compared_at_equal_ones(study_text, findings_of) -> None:
    """As those do that are tuned from another arm's weights; where none but one is left, there is no comparison."""
    title = "Per token, per FLOP and per second"
    for arms, rows in ((("none", "paper", "tuned"), ["none", "paper"]), (("none", "tuned"), None)):
        tables = fake(arms, seeds=3, steps=4, dense=True)
        later = tables.metrics["tokens"] + 10**6 * (tables.metrics["arm"] == "tuned")
        tables = tables._replace(metrics=tables.metrics.assign(tokens=later))
        findings = findings_of(tables, study_text(tables, {"val/loss": "lower"}), routing=False)
        if rows is None:
            assert title not in [section.title for section in sections_of(findings, [])]
        else:
            assert [row[0] for row in section(findings, title).tables[0].rows] == rows


def test_results_stand_beside_chance(six_arms, study_text, findings_of) -> None:
    text = table(findings_of(six_arms), "Results by arm")
    assert "| random router |  |  | 0.050 |  |" in text
    assert "| chance |" not in text
    tables = fake(("mha", "mla"), seeds=2, steps=4, dense=True)
    tables.results["bench/cloze"] = 0.5
    text = table(findings_of(tables, study_text(tables, {"bench/cloze": "higher"}, seeds=2)), "Results by arm")
    assert "| mla | 2 | 0.500 ± 0.000 |" in text
    assert "| chance |  | 0.250 |" in text
    assert "| random router |" not in text


def test_tasks_tell_how_many_seeds_learned_them_and_when(study_text, findings_of) -> None:
    tables = fake(("mha", "mla"), seeds=2, steps=4, dense=True)
    tables.results["recall/accuracy"] = [0.1, 0.9, 0.1, 0.1]
    tables.results["recall/steps_to_half"] = [math.inf, 200.0, math.inf, math.inf]
    text = table(findings_of(tables, study_text(tables, {"val/loss": "lower"}, seeds=2)), "Exploratory: tasks")
    assert "| mha | 1 of 2, median step 200; 0.500 |" in text
    assert "| mla | 0 of 2; 0.100 |" in text


def test_a_grid_has_main_effects_and_identical_arms_have_false_verdicts(study_text, findings_of) -> None:
    arms = ("low_off", "low_on", "high_off", "high_on")
    tables = fake(arms, seeds=4, layers=1, steps=4)
    levels = {arm: dict(zip(("lr", "expert"), arm.split("_"), strict=True)) for arm in arms}
    study = study_text(tables, {"val/loss": "lower"}, seeds=4, levels=levels)
    assert "lr=high x expert=on" in table(findings_of(tables, study), "Exploratory: main effects and interactions")
    text = table(findings_of(tables, replace(study, identical=arms, levels={})), "False verdicts")
    assert re.search(
        r"\| validation loss \| 3 \| \d+\.\d% \| \d+\.\d% to \d+\.\d% \| [\d,]+ \| (above|compatible with) 5% \|", text
    )


def test_an_arm_with_the_seeds_of_the_baseline_must_have_its_numbers(study_text, findings_of) -> None:
    tables = fake(("a", "b", "twin"), seeds=4, layers=1, steps=4)
    results, metrics = tables.results, ["val/loss", "routing/max_violation", "routing/entropy"]
    same = results[results["arm"] == "a"][metrics].to_numpy()
    results.loc[results["arm"] == "twin", metrics] = same
    findings = findings_of(tables, study_text(tables, seeds=4, identical=("a", "b")))
    paired = "twin, which has the seeds of a, has"
    assert section(findings, "False verdicts").paragraphs[1] == f"{paired} the same numbers in all 3 metrics."
    results.loc[(results["arm"] == "twin") & (results["seed"] == 2), "routing/entropy"] += 1e-9
    findings = findings_of(tables, study_text(tables, seeds=4, identical=("a", "b")))
    broken = f"{paired} other numbers in load entropy: pairing is broken."
    assert section(findings, "False verdicts").paragraphs[1] == broken


def test_seeds_are_planned_for_the_margin(six_arms, findings_of) -> None:
    findings = findings_of(six_arms)
    text = section(findings, "Planning").paragraphs[0]
    detectable = detectable_in_sd(3, 0.04 / 5)
    assert text.startswith(f"At this look, a true difference of {detectable:.2g} standard deviations")
    rows = section(findings, "Planning").tables[0].rows
    effect = findings.verdicts[0]
    more = (0.005 / 5, sd_limit(effect.sd, 3))
    expected = [seeds_needed(0.02, sd, more[0]) for sd in (effect.sd, more[1])]
    assert rows[0][4] == f"{expected[0]} to {expected[1]}"
    assert re.fullmatch(r"\d+ to \d+", rows[0][5])


def test_uncommitted_changes_are_said(six_arms, findings_of) -> None:
    findings = findings_of(six_arms)
    assert "uncommitted changes" in section(findings, "Provenance").paragraphs[0]
    assert "| versions.torch | 2.11 |" in table(findings, "Provenance")
    clean = replace(findings, provenance={"git": {"commit": "abc", "dirty": False}})
    assert section(clean, "Provenance").paragraphs == []


def test_uncommitted_changes_of_some_trials_are_said(six_arms, findings_of) -> None:
    trials = [{"commit": "abc", "dirty": True}, {"commit": "d", "dirty": False}]  # of several commits
    several = replace(findings_of(six_arms), provenance={"git": trials})
    assert "abc" in table(several, "Provenance")
    assert "uncommitted changes" in section(several, "Provenance").paragraphs[0]


def test_a_study_without_verdict_has_no_effects(six_arms, study_text, findings_of) -> None:
    titles = [each.title for each in sections_of(findings_of(six_arms, study_text(six_arms, seeds=1)), [])]
    assert not {"Verdicts", "Exploratory: other differences", "Planning", "Figures"} & set(titles)
