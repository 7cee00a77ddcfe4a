"""Pairs are judged in both orders; what is missing is counted and left out."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from dsv2.evaluation.judges.protocol import (
    Failed,
    Judged,
    Question,
    Word,
    agreement_of,
    judged,
    length_controlled,
    mean_grade,
    wilson,
    win_rate,
)

WIN, LOSS = Judged("first", "second"), Judged("second", "first")
TIE, SWAYED, BROKEN = Judged("tie", "tie"), Judged("first", "first"), Judged("first", Failed("no"))


class Saying:
    """A judge that says what a function of both answers says."""

    def __init__(self, say: Callable[[str, str], Word | Failed]) -> None:
        self.say, self.asked = say, list[tuple[str, str]]()

    def compare(self, question: Question, first: str, second: str) -> Word | Failed:
        self.asked.append((first, second))
        return self.say(first, second)


def test_pitfall_10_failed_grades_are_left_out_and_counted() -> None:
    assert mean_grade([8, 6, Failed("error")]) == (7, 2, 1)
    assert math.isnan(mean_grade([Failed("error")]).mean)


def test_pitfall_10_two_orders_have_to_agree() -> None:
    assert [pair.score for pair in (WIN, LOSS, TIE, SWAYED, Judged("tie", "first"), BROKEN)] == [
        1,
        0,
        0.5,
        0.5,
        0.5,
        None,
    ]
    found = win_rate([WIN, WIN, LOSS, TIE, SWAYED, BROKEN])
    assert (found.rate, found.n, found.ties, found.swayed, found.errors) == (0.6, 5, 2, 1, 1)
    assert 0 <= found.interval.low < 0.6 < found.interval.high <= 1
    assert math.isnan(win_rate([BROKEN]).rate)
    assert math.isnan(win_rate([WIN, WIN]).interval.low), "no noise is no certainty"


def test_each_pair_is_shown_in_both_orders() -> None:
    judge = Saying(lambda first, second: "first" if len(first) > len(second) else "second")
    pairs = judged(judge, [Question("?"), Question("??")], ["long", "a"], ["b", "longer"])
    assert judge.asked == [("long", "b"), ("b", "long"), ("a", "longer"), ("longer", "a")]
    assert pairs == [WIN, LOSS]
    first = judged(Saying(lambda *_: "first"), [Question("?")], ["x"], ["y"])
    assert win_rate(first).swayed == 1, "a judge of places prefers nobody"


def test_agreement_of_two_judges() -> None:
    found = agreement_of([WIN, LOSS, TIE, WIN, BROKEN], [WIN, LOSS, WIN, WIN, WIN])
    assert (found.share, found.n) == (0.75, 4)
    assert found.chance == pytest.approx((1 * 1 + 1 * 0 + 2 * 3) / 16)
    assert found.interval.low < 0.75 < found.interval.high
    assert agreement_of([BROKEN], [WIN]).n == 0


def test_wilson_by_a_published_value() -> None:
    """7 of 10: 0.3968 to 0.8922 (Newcombe 1998 gives the formula)."""
    assert wilson(0.7, 10) == pytest.approx((0.39678, 0.89221), abs=1e-4)
    assert wilson(1.0, 5)[1] == pytest.approx(1)


def test_length_control_removes_what_length_explains() -> None:
    """Longer answers win, whoever wrote them, so that of equal length neither does."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(-50, 150, 2000)
    wins = rng.random(2000) < 1 / (1 + np.exp(-2 * np.tanh(lengths / lengths.std())))
    ours, others = ["x" * (100 + length) for length in lengths], ["y" * 100] * 2000
    pairs = [WIN if win else LOSS for win in wins]
    assert win_rate(pairs).rate > 0.6
    assert length_controlled(pairs, ours, others) == pytest.approx(0.5, abs=0.04)
    equal = length_controlled([WIN, WIN, LOSS, TIE], ["a"] * 4, ["b"] * 4)
    assert equal == pytest.approx(2.5 / 4, abs=0.01)
    assert math.isfinite(length_controlled([WIN, LOSS], ["aa", "a"], ["b", "bb"]))
    assert math.isnan(length_controlled([BROKEN], ["a"], ["b"]))
