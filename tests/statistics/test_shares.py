"""Shares of answers found: their means, and what their intervals are over."""

import math

import pandas as pd
import pytest

from dsv2.statistics.paired import t_interval
from dsv2.statistics.shares import found_by_length
from tests.references.tables import fake_needles


def test_intervals_are_over_seeds_and_for_one_seed_over_questions() -> None:
    table = fake_needles(("none",), seeds=3, lengths=(128, 256), questions=6)
    shares = found_by_length(table).set_index("length")
    assert shares["n"].tolist() == [3, 3]
    of_seeds = table[table["length"] == 256].groupby("seed")["correct"].mean()
    assert shares["mean"][256] == pytest.approx(of_seeds.mean())
    assert (shares["low"][256], shares["high"][256]) == pytest.approx(t_interval(of_seeds.to_numpy()))
    one = table[table["seed"] == 0]
    of_questions = one[one["length"] == 256]["correct"]
    for unnamed in (one, one.drop(columns=["arm", "seed"])):
        shares = found_by_length(unnamed).set_index("length")
        assert shares["n"].tolist() == [30, 30]
        low, high = t_interval(of_questions.to_numpy(dtype=float))
        assert (shares["low"][256], shares["high"][256]) == pytest.approx((max(low, 0), min(high, 1)))


def test_intervals_are_within_0_and_1_and_none_where_all_are_equal() -> None:
    columns = ["seed", "length", "correct"]
    rows = [(0, 128, True), (1, 128, False), (0, 256, True), (1, 256, True)]
    noisy, equal = found_by_length(pd.DataFrame(rows, columns=columns)).itertuples(index=False)
    assert (noisy.arm, noisy.mean, noisy.low, noisy.high) == ("", 0.5, 0.0, 1.0)
    assert equal.mean == 1
    assert math.isnan(equal.low)
    assert math.isnan(equal.high)
