"""Verdicts keep their promised error rates, say what they rest on, and refuse what is incomplete."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dsv2.statistics import paired as st
from dsv2.statistics.verdicts import Effect, IncompleteStudy, compare, decimals, difference_text, judge, two_digits

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
DELTA = np.array([-0.31, -0.22, -0.45, 0.04, -0.18, -0.27])


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Each test draws the same numbers, whichever others run."""
    RNG.bit_generator.state = START


def effect_of(values: dict[str, np.ndarray], margin: float | None = None, direction: str = "lower") -> Effect:
    (effect,) = judge(values, "val/loss", baseline="base", direction=direction, margin=margin)
    return effect


def shifted(delta: np.ndarray) -> dict[str, np.ndarray]:
    base = 5 + np.linspace(0, 0.1, len(delta))
    return {"base": base, "arm": base + delta}


def table(arms: tuple[str, ...] = ("base", "arm"), seeds: int = 4) -> pd.DataFrame:
    rows = [(arm, seed, "finished", 5 + 0.1 * seed - 0.2 * i) for i, arm in enumerate(arms) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["arm", "seed", "status", "val/loss"])


@pytest.mark.parametrize("arms", [1, 5])
def test_verdicts_on_equal_arms_are_false_in_at_most_one_study_of_twenty(arms: int) -> None:
    studies, false = 800, 0
    for _ in range(studies):
        values = {"base": RNG.normal(0, 1, 5)} | {f"arm{i}": RNG.normal(0, 1, 5) for i in range(arms)}
        effects = judge(values, "val/loss", baseline="base", direction="lower")
        false += any(effect.word in ("better", "worse") for effect in effects)
    rate = stats.binomtest(false, studies).proportion_ci(0.999)
    assert rate.low <= 0.05
    assert rate.high >= (0.05 if arms == 1 else 0.01)  # and the test is not asleep: exact for one arm


def test_verdict_words() -> None:
    noise = 0.01 * np.array([-0.9, 1.2, 0.3, -0.4, 1.5, -0.7])
    assert effect_of(shifted(noise - 0.5)).word == "better"
    assert effect_of(shifted(noise - 0.5), direction="higher").word == "worse"
    assert effect_of(shifted(noise), margin=0.1).word == "equivalent"
    assert effect_of(shifted(noise - 0.05), margin=0.2).verdict.endswith("significant, but below the margin")
    assert effect_of(shifted(noise * 0)).word == "identical"
    constant = effect_of({"base": np.zeros(4), "arm": np.full(4, -0.25)})
    assert (constant.word, constant.note.partition("without any spread")[1]) == ("undecided", "without any spread")
    undecided = effect_of(shifted(noise * 10), margin=0.05)
    assert undecided.word == "undecided"
    assert f"differences below {undecided.detectable:.2g} may have been missed" in undecided.note
    assert re.search(r"about \d+ seeds would decide .*, about \d+ would show equivalence within 0.05", undecided.note)


def test_one_seed_has_neither_interval_nor_verdict() -> None:
    effect = effect_of(shifted(np.array([-3.0])), margin=0.1)
    assert effect.word == "none"
    assert "one seed" in effect.verdict
    assert all(math.isnan(x) for x in (effect.low, effect.high, effect.p, effect.p_holm, effect.detectable))
    assert effect.separated == ""


def test_an_incomplete_study_has_no_verdict_and_names_what_is_missing() -> None:
    results = table()
    results.loc[(results.arm == "arm") & (results.seed == 2), "status"] = "failed"
    results = results[~((results.arm == "base") & (results.seed == 0))]
    with pytest.raises(IncompleteStudy) as error:
        compare(results, "val/loss", arms=["base", "arm"], baseline="base", seeds=range(4), direction="lower")
    assert error.value.missing == ["base seed 0 (missing)", "arm seed 2 (failed)"]


def test_bad_tables_are_refused_by_name() -> None:
    def run(results: pd.DataFrame, metric: str = "val/loss") -> list[Effect]:
        return compare(results, metric, arms=["base", "arm"], baseline="base", seeds=range(4), direction="lower")

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
    (effect,) = compare(results, "val/loss", arms=["base", "arm"], baseline="base", seeds=range(4), direction="lower")
    assert effect.mean == pytest.approx(-0.2)
    assert effect.sd == pytest.approx(0, abs=1e-12)  # unpaired it would be 0.18


def test_what_would_have_been_seen_allows_for_the_number_of_arms() -> None:
    """With m arms Holm's first step asks for p < alpha / m, so a difference must be larger to be seen."""
    values = shifted(DELTA) | {"other": shifted(DELTA)["arm"] + 1}
    for family, effects in (
        (1, [effect_of(shifted(DELTA))]),
        (2, judge(values, "val/loss", baseline="base", direction="lower")),
    ):
        assert len(effects) == family
        expected = st.detectable_in_sd(6, 0.05 / family) * DELTA.std(ddof=1)
        assert [effect.detectable for effect in effects] == pytest.approx([expected] * family, rel=1e-9)


def test_rounding_is_neither_a_difference_nor_a_spread() -> None:
    """One shift on different values differs in the last bits; a t-test of that noise would find p = 0."""
    base = np.array([0.9, 1.7, 3.3, 4.7])
    for shift in (1e-6, -1e-4, 0.3):
        delta = (base + shift) - base
        assert np.ptp(delta) > 0
        effect = effect_of({"base": base, "arm": base + shift}, margin=1.0)
        assert effect.word == "undecided"
        assert "without any spread" in effect.note
        assert math.isnan(effect.p_equivalence)
    assert effect_of({"base": base, "arm": base * (1 + 2e-16)}).word == "identical"
    small = effect_of({"base": base, "arm": base + 1e-9 * np.array([-1.0, -2.0, -1.5, -1.7])})
    assert small.word == "better"  # small, and no rounding
    assert "-1.5e-09 [" in small.verdict or "-1.6e-09 [" in small.verdict


def test_equivalence_is_corrected_over_the_arms() -> None:
    """Alone an arm is equivalent; beside four of which three are not, Holm asks for less than p = 0.05."""
    noise = np.array([-0.9, 1.2, 0.3, -0.4, 1.5, -0.7])
    margin = next(m for m in np.linspace(0.5, 3, 251) if st.equivalence_p(noise, m) < 0.04)
    base = np.linspace(5, 6, 6)
    alone = judge({"base": base, "arm": base + noise}, "x", baseline="base", direction="lower", margin=margin)
    assert [effect.word for effect in alone] == ["equivalent"]
    far = {f"far{i}": base + noise * (1 + i) + 9 for i in range(3)}
    among = judge({"base": base, "arm": base + noise} | far, "x", baseline="base", direction="lower", margin=margin)
    assert among[0].word == "undecided"
    assert among[0].p_equivalence == pytest.approx(4 * alone[0].p_equivalence)


def test_a_seed_is_counted_once_and_arms_have_equally_many() -> None:
    with pytest.raises(ValueError, match=r"seeds=\[0, 0, 1\]: must be distinct"):
        compare(table(), "val/loss", arms=["base", "arm"], baseline="base", seeds=[0, 0, 1], direction="lower")
    with pytest.raises(ValueError, match=r"\(1,\) \(arm\) and \(4,\) \(baseline\)"):
        effect_of({"base": np.zeros(4), "arm": np.zeros(1)})
    with pytest.raises(ValueError, match="baseline='base': must be one of arm"):
        effect_of({"arm": np.zeros(3)})


def test_three_seeds_decide_where_the_difference_is_clear() -> None:
    few, more = effect_of(shifted(DELTA[:3] - 9)), effect_of(shifted(np.tile(DELTA, 2) - 9))
    assert (few.word, more.word) == ("better", "better")
    assert few.note == more.note == "no seed overlaps the baseline's"


def test_numbers_have_two_digits_of_what_is_known() -> None:
    assert difference_text(-0.01234, -0.0356, 0.0109) == "-0.012 [-0.036, +0.011]"
    assert difference_text(1.5e-9, 1e-9, 2e-9) == "+1.5e-09 [+1e-09, +2e-09]"
    assert difference_text(0.1234, math.nan, math.nan) == "+0.12"
    assert [decimals(-half, half) for half in (20.0, 2.0, 0.2, 0.02, 0.0)] == [0, 1, 2, 3, 3]
    assert (two_digits(0.01234), two_digits(math.nan)) == ("0.012", "")
