"""Decisions along a ladder, in its report, and the plan that stored runs give."""

import re

import pytest

from ablations.reporting.decisions import calibration_rows, decision_text, offers_of, print_plan, step_rows
from ablations.reporting.ladder import report_ladder
from ablations.run import main
from dsv2.statistics.decisions import Bin, Step
from dsv2.statistics.paired import Interval

HELD = Step("val/loss", "smoke", "tiny", 10, 6, 4, 1, 0.8, Interval(0.28, 0.99), 8)
OPEN = Step("val/bpb", "smoke", "tiny", 10, 1, 0, 0, float("nan"), Interval(float("nan"), float("nan")), 5)


def test_tables_say_what_held() -> None:
    header, rows = step_rows([HELD, OPEN])
    assert rows[0] == ["validation loss", "smoke to tiny", "10", "6", "4", "1", "80% [28%, 99%]", "8 of 10"]
    assert rows[1][-2] == ""
    assert len(header) == len(rows[0])
    assert (
        "Of 7 decisions over all metrics, 4 hold on the next scale and 1 are reversed (80%"
        in decision_text([HELD, OPEN])[1]
    )
    assert decision_text([HELD])[2] == "No metric has decisions that hold on the next scale."
    assert "validation loss" in decision_text([HELD._replace(share=1.0, reversed=0)])[2]
    assert calibration_rows([Bin(0.9, 1.0, 5, 0.95, 0.8, Interval(0.3, 0.99))])[1] == [
        ["90% to 100%", "5", "95%", "80% [30%, 99%]"]
    ]


def test_a_ladders_report_has_its_decisions(fill, console, runs) -> None:
    report_ladder([fill("kv_rank", "smoke"), fill("kv_rank", "tiny")], console)
    report = (runs / "kv_rank" / "ladder" / "report" / "report.md").read_text()
    assert "## Decisions that hold on the next scale" in report
    assert re.search(r"^\| validation loss \| smoke to tiny \| \d+ \|", report, flags=re.M)
    assert "predicted chance of the same sign" in report


def test_a_plan_prices_every_contrast_at_every_scale_that_was_run(fill, console, capsys) -> None:
    studies = [fill("kv_rank", "smoke"), fill("kv_rank", "tiny")]
    offers = offers_of(studies)
    assert len(offers) == len(studies[0].contrasts)
    assert all([each.scale for each in several] == ["smoke", "tiny"] for several in offers.values())
    cheap, dear = next(iter(offers.values()))
    if cheap.seeds and dear.seeds:
        assert dear.flops / dear.seeds > cheap.flops / cheap.seeds
    print_plan(studies, console)


def test_a_plan_without_runs_says_what_to_run(runs, capsys: pytest.CaptureFixture) -> None:
    assert main(["sweep=kv_rank", "scale=[smoke,tiny]", "plan=true"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "plan: no stored runs of kv_rank at smoke,tiny; a pilot of two seeds is enough" in line
