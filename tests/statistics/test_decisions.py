"""Decisions of one rung and the next: counted by hand, calibrated in simulation, and planned at the least compute."""

import math

import numpy as np
import pandas as pd
import pytest

from dsv2.statistics.decisions import Difference, cheapest, compare, difference, earliest, offer, spread_of

PAIRS = [("b", "a"), ("c", "a"), ("c", "b")]


def rung(**values: list[float]) -> pd.DataFrame:
    """A rung in the metric x: the values of each arm by seed."""
    return pd.DataFrame(
        [{"arm": arm, "seed": seed, "x": value} for arm, each in values.items() for seed, value in enumerate(each)]
    )


def test_decisions_are_counted_as_by_hand() -> None:
    low = rung(a=[1.0, 1.1, 1.2], b=[2.0, 2.1, 2.21], c=[0.5, 0.61, 0.7])
    high = rung(a=[1.0, 1.1, 1.2], b=[1.5, 1.6, 1.71], c=[1.6, 1.7, 1.81])  # c is now the highest
    (step,), bins = compare({"smoke": low, "tiny": high}, ["x", "missing"], PAIRS)
    assert (step.pairs, step.decided, step.held, step.reversed, step.same_sign) == (3, 3, 1, 2, 1)
    assert step.share == pytest.approx(1 / 3)
    assert step.interval.low == pytest.approx(0.0084, abs=1e-4)  # Clopper and Pearson
    assert step.interval.high == pytest.approx(0.9057, abs=1e-4)
    assert sum(each.pairs for each in bins) == 3
    assert earliest([step]) == []


def test_what_the_next_rung_does_not_decide_is_open() -> None:
    low = rung(a=[1.0, 1.1, 1.2], b=[2.0, 2.1, 2.21])
    high = rung(a=[1.0, 1.1, 1.2], b=[1.9, 0.5, 1.0])
    (step,), _ = compare({"smoke": low, "tiny": high}, ["x"], [("b", "a")])
    assert (step.decided, step.held, step.reversed) == (1, 0, 0)
    assert math.isnan(step.share)
    assert math.isnan(step.interval.low)


def test_the_metric_that_holds_most_on_the_lowest_rung_decides_earliest() -> None:
    low = rung(a=[1.0, 1.1, 1.2], b=[2.0, 2.1, 2.21], c=[1.0, 1.2, 1.1]).assign(
        y=[1, 1.1, 1.2, 1.4, 1, 1.3, 5, 5.2, 5.31]
    )
    steps, _ = compare({"smoke": low, "tiny": low, "small": low}, ["y", "x"], PAIRS)
    assert [step.held for step in steps] == [2, 2, 2, 2]
    assert set(earliest(steps)) == {"x", "y"}
    silent = low.assign(y=[1.0, 2, 3, 3, 1, 2, 2, 3, 1])
    steps, _ = compare({"smoke": silent, "tiny": low}, ["y", "x"], PAIRS)
    assert earliest(steps) == ["x"]


def test_chances_are_those_of_students_distribution() -> None:
    assert Difference(0.0, 1.0, 5).chance(5) == 0.5
    assert Difference(1.0, 1.0, 1).chance(5) == 0.5
    assert Difference(1.0, 0.0, 3).chance(3) == 1.0
    assert Difference(1.0, 1.0, 3).chance(3, 0.0) == 0.5
    assert Difference(1.0, 1.0, 3).chance(3, 0.5) < Difference(1.0, 1.0, 3).chance(3)
    assert Difference(1.0, 1.0, 2).chance(2) == pytest.approx(0.75)  # Cauchy at 1
    assert Difference(-2.0, 1.0, 8).chance(8) == Difference(2.0, 1.0, 8).chance(8) > 0.99


@pytest.mark.parametrize("effect", [0.3, 1.0])
def test_chances_are_calibrated_where_the_effect_is_the_same(effect: float) -> None:
    """Over effects drawn around 0, among pairs of like chance that share has the same sign on the next rung."""
    rng = np.random.default_rng(0)
    low, high = {}, {}
    for number in range(600):
        true = rng.normal(0, effect)
        low[f"x{number}"], high[f"x{number}"] = (rng.normal(true, 1.0, 8) for _ in range(2))
    pilots = {name: Difference(float(values.mean()), float(values.std(ddof=1)), 8) for name, values in low.items()}
    spread = spread_of([*pilots.values()])
    assert spread == pytest.approx(effect, rel=0.25)
    chances = [pilot.chance(8, spread) for pilot in pilots.values()]
    same = [pilot.mean * high[name].mean() > 0 for name, pilot in pilots.items()]
    assert np.mean(same) == pytest.approx(np.mean(chances), abs=0.05)
    sure = np.array(chances) >= 0.9
    if effect == 1.0:
        assert np.mean(np.array(same)[sure]) >= 0.9
    else:
        assert sure.mean() < 0.05  # among effects this small, hardly any is known


def test_arms_without_the_metric_make_no_pair() -> None:
    table = rung(a=[1.0, 2.0], b=[1.0, math.nan])
    assert difference(table, "x", "a", "b") is None
    assert difference(table, "x", "a", "d") is None
    assert difference(rung(a=[1.0], b=[2.0]), "x", "a", "b") is None
    assert difference(rung(a=[1.0, 2.0], b=[0.5, 1.0]), "x", "a", "b") == Difference(
        0.75, pytest.approx(0.3536, abs=1e-4), 2
    )


def test_the_cheapest_scale_that_answers_is_chosen() -> None:
    noisy, clear, dear = (
        offer("smoke", Difference(0.001, 1.0, 4), 1.0),
        offer("tiny", Difference(1.0, 0.6, 4), 10.0),
        offer("small", Difference(1.0, 0.1, 4), 1000.0),
    )
    assert noisy.seeds is None
    assert not noisy.answers
    assert clear.seeds is not None
    assert clear.flops == clear.seeds * 10.0
    assert cheapest([noisy, clear, dear]) == clear
    assert cheapest([noisy]) is None
    assert offer("tiny", Difference(1.0, 0.0, 2), 1.0).seeds == 2
