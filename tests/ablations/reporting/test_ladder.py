"""The report of a ladder says whether its predictions held."""

from ablations.reporting.ladder import fit_rows, ladder_text, prediction_rows
from dsv2.statistics.ladder import POWER_LAW, fit_ladder, held_out
from dsv2.statistics.trends import trends
from tests.references.ladders import ARMS, simulate


def test_the_report_says_whether_the_prediction_held() -> None:
    runs = simulate(gain=(0.97, 0.97, 0.97, 1.2, 1.2))
    below = fit_ladder(runs[runs["scale"] != "base"], arms=ARMS, baseline="mha", resamples=200)
    told = held_out(runs, scale="base", arms=ARMS, baseline="mha", resamples=200)
    text = " ".join(ladder_text(trends(runs, arms=ARMS, baseline="mha"), below, told))
    assert "mla better at smoke, better at tiny, better at small, worse at base" in text
    assert "Held out, base: 1 of 3 observations inside their interval; outside: mla, mla - mha." in text
    header, rows = prediction_rows(told)
    assert [row[-1] for row in rows] == ["inside", "outside", "outside"]
    assert all(len(row) == len(header) for row in rows)
    header, rows = fit_rows(
        fit_ladder(runs[runs["scale"].isin(["smoke", "tiny"])], arms=ARMS, baseline="mha", resamples=200)
    )
    assert [row[1:3] for row in rows] == [[POWER_LAW, "none"]] * 2
    assert all(len(row) == len(header) for row in rows)
