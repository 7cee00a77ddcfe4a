"""How differences change over scale, on ladders whose answer is known; runs that are no ladder are refused by name."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dsv2.statistics.trends import climb, trend_rows, trends
from dsv2.statistics.verdicts import IncompleteStudy
from tests.references.ladders import ARMS, SCALES, simulate


def test_trends_say_the_side_and_no_verdict() -> None:
    def text(gain: Sequence[float], **changed: Any) -> str:
        (trend,) = trends(simulate(gain=gain, rungs=3, **changed), arms=ARMS, baseline="mha")
        assert trend.scales == SCALES[:3]
        assert {effect.word for effect in trend.effects} == {""}
        return trend.text

    assert text((0.97, 0.97, 0.97)) == "below the baseline at every rung"
    assert text((1.03, 1.03, 1.03)) == "above the baseline at every rung"
    assert text((0.97, 0.97, 1.03)) == "on both sides of the baseline"
    assert text((0.97, 0.97, 0.97), seeds=1) == "below the baseline at every rung"
    assert text((1.0, 1.0, 1.0), noise=0.0) == "equal to the baseline at every rung"
    header, rows = trend_rows(trends(simulate(rungs=3), arms=ARMS, baseline="mha"))
    assert header == ["arm", "smoke", "tiny", "small", "over scale"]
    assert [len(row) for row in rows] == [len(header)]


def test_rungs_are_ordered_by_the_compute_of_the_baseline() -> None:
    runs = simulate(rungs=3)
    assert climb(runs, arms=ARMS, baseline="mha") == list(SCALES[:3])
    dear = runs.assign(flops=runs["flops"].where(runs["scale"] != "smoke", 1e18))
    assert climb(dear, arms=ARMS, baseline="mha") == ["tiny", "small", "smoke"]


def test_effects_are_those_of_each_rung() -> None:
    runs = simulate(rungs=2, gain=(0.97, 0.99))
    (trend,) = trends(runs, arms=ARMS, baseline="mha")
    wide = runs.pivot(index=["scale", "seed"], columns="arm", values="loss")
    means = (wide["mla"] - wide["mha"]).groupby("scale").mean()
    assert [effect.mean for effect in trend.effects] == pytest.approx([means["smoke"], means["tiny"]])


def test_runs_that_are_no_ladder_are_refused_by_name() -> None:
    runs = simulate(rungs=3, seeds=2)
    with pytest.raises(ValueError, match="more than one run for scale='"):
        climb(pd.concat([runs, runs.head(1)]), arms=ARMS, baseline="mha")
    with pytest.raises(ValueError, match="no column 'flops'"):
        climb(runs.drop(columns="flops"), arms=ARMS, baseline="mha")
    with pytest.raises(ValueError, match="baseline='gqa': must be one of mha, mla"):
        climb(runs, arms=ARMS, baseline="gqa")
    lost = runs[~((runs["scale"] == "tiny") & (runs["arm"] == "mla") & (runs["seed"] == 1))]
    with pytest.raises(IncompleteStudy, match=r"mla seed 1 at tiny \(missing\)"):
        climb(lost, arms=ARMS, baseline="mha")
    with pytest.raises(ValueError, match="flops=nan at scale='smoke'"):
        climb(runs.assign(flops=runs["flops"].where(runs["scale"] != "smoke", np.nan)), arms=ARMS, baseline="mha")
