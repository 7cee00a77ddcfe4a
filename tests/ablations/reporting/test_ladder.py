"""A study along its scales: what its report says, of simulated runs and of stores filled with made-up results."""

import re

import pytest

from ablations.report import main
from ablations.reporting.ladder import fit_rows, ladder_text, prediction_rows, report_ladder, runs_of
from dsv2.statistics.ladder import POWER_LAW, fit_ladder, held_out
from dsv2.statistics.trends import trends
from dsv2.study.files import read
from tests.references.ladders import ARMS, simulate

SCALES = ("smoke", "tiny", "small", "base")


@pytest.mark.slow
def test_a_ladder_says_how_differences_change_and_foretells(fill, capsys, runs):
    for scale in SCALES:
        fill("kv_rank", scale)
    assert main(["sweep=kv_rank", "scale=[smoke,tiny,small,base]"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Exploratory, over smoke, tiny, small, base: quarter below the baseline at every rung", printed)
    report = (runs / "kv_rank" / "ladder" / "report" / "report.md").read_text()
    assert "E + A C^-alpha" in report or "A C^-alpha" in report
    assert "Held-out rung base:" in report
    assert "| paper |" in report  # the next rung is foretold
    assert (runs / "kv_rank" / "ladder" / "report" / "figures" / "loss_over_compute_rank1.png").stat().st_size > 10_000


def test_compute_is_flops_per_token_times_tokens(fill):
    planned = fill("kv_rank", "smoke")
    table = runs_of([planned])
    (row,) = [row for row in planned.budgets() if row["arm"] == "half"]
    assert set(table[table["arm"] == "half"]["flops"]) == {row["flops_per_token"] * row["tokens"]}
    assert set(table["scale"]) == {"smoke"}


def test_a_ladder_with_a_hole_compares_nothing(fill, capsys):
    fill("kv_rank", "smoke")
    fill("kv_rank", "tiny", leave_out=1)
    assert main(["sweep=kv_rank", "scale=[smoke,tiny]"]) == 0
    assert "Nothing to compare: 1 trials have no result: double seed 2 at tiny" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_a_ladder_of_two_rungs_has_no_curve(fill, console, runs):
    report_ladder([fill("kv_rank", "smoke"), fill("kv_rank", "tiny")], console)
    report = (runs / "kv_rank" / "ladder" / "report" / "report.md").read_text()
    assert "a power law has 2 parameters, so it passes through any 2 rungs; it takes 3" in report
    assert "Fitted over" not in report
    assert "## Curves" not in report
    assert "## Predictions" not in report


def test_a_ladder_of_three_rungs_holds_none_out(fill, console, runs):
    """Nor is a study that no file of ours names kept from the prediction of its next rung."""
    node = read("sweep", "kv_rank") | {"name": "mine"}
    report_ladder([fill(node, scale) for scale in ("smoke", "tiny", "small")], console)
    report = (runs / "mine" / "ladder" / "report" / "report.md").read_text()
    assert "loss = A C^-alpha, since three rungs do not test three parameters" in report
    assert "Held-out" not in report
    assert re.search(r"\| half \| base \| .* \| not run \|  \|", report)


def test_the_highest_scale_predicts_nothing(fill, console, runs, monkeypatch):
    monkeypatch.setattr("ablations.reporting.ladder.SCALES", ("smoke", "tiny", "small"))
    report_ladder([fill("kv_rank", scale) for scale in ("smoke", "tiny", "small")], console)
    assert "## Predictions" not in (runs / "kv_rank" / "ladder" / "report" / "report.md").read_text()


def test_every_baseline_has_a_ladder_of_its_own(fill, console, runs):
    report_ladder([fill("attention_moe", scale, seeds=(0, 1)) for scale in ("smoke", "tiny")], console)
    report = (runs / "attention_moe" / "ladder" / "report" / "report.md").read_text()
    titles = [line.removeprefix("## ") for line in report.splitlines() if line.startswith("## Against")]
    assert titles == ["Against small_mha, rung by rung", "Against large_mha, rung by rung"]


def test_the_report_says_whether_the_prediction_held() -> None:
    runs = simulate(rungs=5, gain=(0.97,) * 4 + (1.2,))
    below = fit_ladder(runs[runs["scale"] != "paper"], arms=ARMS, baseline="mha", resamples=200)
    told = held_out(runs, scale="paper", arms=ARMS, baseline="mha", resamples=200)
    text = " ".join(ladder_text(trends(runs, arms=ARMS, baseline="mha"), below, told))
    assert "mla on both sides of the baseline" in text
    assert "Held-out rung paper: 1 of 3 observations inside their interval; outside: mla, mla - mha." in text
    header, rows = prediction_rows(told)
    assert [row[-1] for row in rows] == ["inside", "outside", "outside"]
    assert all(len(row) == len(header) for row in rows)
    header, rows = fit_rows(
        fit_ladder(runs[~runs["scale"].isin(["base", "paper"])], arms=ARMS, baseline="mha", resamples=200)
    )
    assert [row[1:3] for row in rows] == [[POWER_LAW, "none"]] * 2
    assert all(len(row) == len(header) for row in rows)
