"""Verdicts are read off their intervals, say what remains possible, and refuse what is incomplete or undefined."""

import math
import re

import numpy as np
import pandas as pd
import pytest

from dsv2.statistics import paired as st
from dsv2.statistics.verdicts import (
    Contrast,
    Effect,
    IncompleteStudy,
    decide,
    decimals,
    difference_text,
    explore,
    judge,
)

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
DELTA = np.array([-0.31, -0.22, -0.45, 0.04, -0.18, -0.27])


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Each test draws the same numbers, whichever others run."""
    RNG.bit_generator.state = START


def results_of(values: dict[str, np.ndarray], metric: str = "val/loss") -> pd.DataFrame:
    rows = [(arm, seed, "finished", value) for arm, column in values.items() for seed, value in enumerate(column)]
    return pd.DataFrame(rows, columns=["arm", "seed", "status", metric])


def effect_of(
    values: dict[str, np.ndarray], margin: float = math.nan, direction: str = "lower", error: float = 0.05
) -> Effect:
    (effect,) = judge(
        results_of(values),
        [Contrast("arm", "base", "val/loss", margin)],
        seeds=range(len(values["base"])),
        directions={"val/loss": direction},
        error=error,
    )
    return effect


def shifted(delta: np.ndarray) -> dict[str, np.ndarray]:
    base = 5 + np.linspace(0, 0.1, len(delta))
    return {"base": base, "arm": base + delta}


def table(arms: tuple[str, ...] = ("base", "arm"), seeds: int = 4) -> pd.DataFrame:
    rows = [(arm, seed, "finished", 5 + 0.1 * seed - 0.2 * i) for i, arm in enumerate(arms) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["arm", "seed", "status", "val/loss"])


NOISE_OF_SIX = 0.01 * np.array([-0.9, 1.2, 0.3, -0.4, 1.5, -0.7])


def test_words_are_read_off_the_interval() -> None:
    low, high = [-3, 1, -0.5, -2, 0, -0.4, 0.1, -0.5], [-1, 3, 0.5, 2, 0, -0.1, 0.4, 1.0]
    expected = ["better", "worse", "equivalent", "undecided", "identical", "better", "worse", "undecided"]
    assert list(decide(np.array(low), np.array(high), 1.0, "lower")) == expected
    swapped = {"better": "worse", "worse": "better"}
    assert list(decide(np.array(low), np.array(high), 1.0, "higher")) == [swapped.get(word, word) for word in expected]
    assert decide(-0.5, 0.5, math.nan, "lower") == "undecided"
    assert decide(-math.inf, math.inf, 1.0, "lower") == "undecided"


@pytest.mark.parametrize(("low", "high"), [(math.nan, 1.0), (-1.0, math.nan), (math.nan, math.nan), (1.0, -1.0)])
def test_undefined_limits_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=r"low=.*must be numbers, the lower limit first"):
        decide(low, high, 1.0, "lower")
    with pytest.raises(ValueError, match="must be numbers"):
        decide(np.array([-1.0, low]), np.array([1.0, high]), 1.0, "lower")


def test_undefined_errors_are_refused() -> None:
    with pytest.raises(ValueError, match="must be numbers"):
        effect_of(shifted(DELTA), error=math.nan)


def test_phrases_say_what_remains_possible() -> None:
    better = effect_of(shifted(NOISE_OF_SIX - 0.5), margin=0.02)
    assert better.text == f"better: {difference_text(better.mean, better.low, better.high)}; margin 0.02"
    assert effect_of(shifted(NOISE_OF_SIX - 0.5), direction="higher").word == "worse"
    same = effect_of(shifted(NOISE_OF_SIX), margin=0.1)
    assert re.fullmatch(r"equivalent: \+0\.\d+ \[.*\]; within the margin 0\.1", same.text)
    small = effect_of(shifted(NOISE_OF_SIX - 0.05), margin=0.2)
    assert small.word == "better"
    assert small.text.endswith("; smaller than the margin 0.2 all the same")
    assert effect_of(shifted(NOISE_OF_SIX * 0)).text == "identical: in all 6 seeds"
    undecided = effect_of(shifted(NOISE_OF_SIX * 10 - 0.03), margin=0.02)
    cost, gain = f"{undecided.high:.2f}", f"{-undecided.low:.2f}"
    assert undecided.text.endswith(f"; a cost of up to {cost} and a gain of up to {gain} are possible; margin 0.02")
    higher = effect_of(shifted(NOISE_OF_SIX * 10 - 0.03), direction="higher")
    assert higher.text.endswith(f"; a cost of up to {gain} and a gain of up to {cost} are possible")


def test_the_interval_has_the_error_of_its_look_and_decides() -> None:
    for error in (0.05, 0.01, 0.001):
        effect = effect_of(shifted(DELTA), error=error)
        assert (effect.low, effect.high) == pytest.approx(st.t_interval(DELTA, 1 - error))
        assert effect.word == ("better" if effect.high < 0 else "undecided")
    assert {effect_of(shifted(DELTA), error=error).word for error in (0.05, 0.001)} == {"better", "undecided"}


def test_nothing_to_spend_and_no_noise_decide_nothing() -> None:
    spent = effect_of(shifted(DELTA - 9), error=0.0, margin=0.1)
    assert spent.text == "undecided: -9.2; this look has too little error to spend for an interval; margin 0.1"
    constant = effect_of({"base": np.zeros(4), "arm": np.full(4, -0.25)}, margin=1.0)
    assert constant.word == "undecided"
    assert "every seed has the same difference" in constant.text


def test_exploratory_effects_have_plain_intervals_and_no_words() -> None:
    values = shifted(DELTA) | {"other": shifted(DELTA)["arm"] - 1}
    effects = explore(results_of(values), "val/loss", arms=list(values), baseline="base", seeds=range(6))
    assert [effect.arm for effect in effects] == ["arm", "other"]
    assert (effects[0].low, effects[0].high) == pytest.approx(st.t_interval(DELTA))
    assert {(effect.word, effect.text) for effect in effects} == {("", "")}
    assert all(math.isnan(effect.margin) for effect in effects)


def test_one_seed_has_neither_interval_nor_verdict() -> None:
    values = results_of(shifted(np.array([-3.0])))
    (effect,) = explore(values, "val/loss", arms=["base", "arm"], baseline="base", seeds=[0])
    assert (effect.n, effect.mean) == (1, -3.0)
    assert all(math.isnan(x) for x in (effect.low, effect.high, effect.sd))
    assert effect_of(shifted(np.array([-3.0])), margin=0.1).word == "undecided"


def test_what_an_arm_does_not_measure_has_no_verdict() -> None:
    routed = results_of(shifted(DELTA), "routing/entropy")
    routed.loc[routed["arm"] == "arm", "routing/entropy"] = math.nan
    contrasts = [Contrast("arm", "base", "routing/entropy", 0.1)]
    (effect,) = judge(routed, contrasts, seeds=range(6), directions={"routing/entropy": "higher"}, error=0.05)
    assert effect.text == "none: arm measured no load entropy"
    assert effect.word == "none"


def test_an_incomplete_study_has_no_verdict_and_names_what_is_missing() -> None:
    results = table()
    results.loc[(results.arm == "arm") & (results.seed == 2), "status"] = "failed"
    results = results[~((results.arm == "base") & (results.seed == 0))]
    with pytest.raises(IncompleteStudy) as error:
        explore(results, "val/loss", arms=["base", "arm"], baseline="base", seeds=range(4))
    assert error.value.missing == ["base seed 0 (missing)", "arm seed 2 (failed)"]


def test_bad_tables_are_refused_by_name() -> None:
    def run(results: pd.DataFrame, metric: str = "val/loss") -> list[Effect]:
        return explore(results, metric, arms=["base", "arm"], baseline="base", seeds=range(4))

    broken = table()
    broken.loc[5, "val/loss"] = math.nan
    with pytest.raises(ValueError, match=r"val/loss='nan' is not valid: .* for arm 'arm', seeds \[1\]"):
        run(broken)
    with pytest.raises(ValueError, match="more than one trial for arm='base', seed=0"):
        run(pd.concat([table(), table().head(1)]))
    with pytest.raises(ValueError, match="judged='val/bpb' is not valid: a metric of the results"):
        run(table(), "val/bpb")
    assert run(table(), "routing/entropy") == []  # dense models route nothing


def test_arms_are_paired_by_seed_whatever_the_order_of_rows() -> None:
    results = table().sample(frac=1, random_state=1)
    (effect,) = explore(results, "val/loss", arms=["base", "arm"], baseline="base", seeds=range(4))
    assert effect.mean == pytest.approx(-0.2)
    assert effect.sd == pytest.approx(0, abs=1e-12)  # unpaired it would be 0.18


def test_rounding_is_neither_a_difference_nor_a_spread() -> None:
    """One shift on different values differs in the last bits; a t-test of that noise would find p = 0."""
    base = np.array([0.9, 1.7, 3.3, 4.7])
    for shift in (1e-6, -1e-4, 0.3):
        delta = (base + shift) - base
        assert np.ptp(delta) > 0
        effect = effect_of({"base": base, "arm": base + shift}, margin=1.0)
        assert effect.word == "undecided"
        assert "every seed has the same difference" in effect.text
    assert effect_of({"base": base, "arm": base * (1 + 2e-16)}).word == "identical"
    small = effect_of({"base": base, "arm": base + 1e-9 * np.array([-1.0, -2.0, -1.5, -1.7])})
    assert small.word == "better"  # small, and no rounding
    assert "-1.5e-09 [" in small.text or "-1.6e-09 [" in small.text


def test_a_seed_is_counted_once_and_arms_have_equally_many() -> None:
    with pytest.raises(ValueError, match=r"seeds=\[0, 0, 1\]: must be distinct"):
        explore(table(), "val/loss", arms=["base", "arm"], baseline="base", seeds=[0, 0, 1])
    with pytest.raises(IncompleteStudy, match=r"arm seed 1 \(missing\)"):
        effect_of({"base": np.zeros(4), "arm": np.zeros(1)})
    with pytest.raises(ValueError, match="direction='up'"):
        effect_of(shifted(DELTA), direction="up")


def test_numbers_have_two_digits_of_what_is_known() -> None:
    assert difference_text(-0.01234, -0.0356, 0.0109) == "-0.012 [-0.036, +0.011]"
    assert difference_text(1.5e-9, 1e-9, 2e-9) == "+1.5e-09 [+1e-09, +2e-09]"
    assert difference_text(0.1234, math.nan, math.nan) == "+0.12"
    assert [decimals(-half, half) for half in (20.0, 2.0, 0.2, 0.02, 0.0)] == [0, 1, 2, 3, 3]
