"""The promises of verdicts hold on simulated studies, a judge that breaks them is caught, and real trials are asked."""

import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dsv2.statistics.calibration import (
    MARGIN,
    PAIRED_SD,
    Rate,
    clopper_pearson,
    coverage,
    false_equivalence,
    false_positives,
    from_trials,
    power,
    simulated,
)
from dsv2.statistics.paired import t_interval
from dsv2.statistics.verdicts import Effect, judge
from tests.references.trials import aa

STUDIES = 400


def uncorrected(values: dict[str, np.ndarray], metric: str, **how: Any) -> list[Effect]:
    """A judge that forgets the correction: each arm alone against the baseline."""
    pairs = [{"base": values["base"], arm: each} for arm, each in values.items() if arm != "base"]
    return [effect for pair in pairs for effect in judge(pair, metric, **how)]


def too_many(rate: Rate) -> bool:
    """More hits than promised, beyond what the binomial gives once in ten thousand."""
    return bool(stats.binom.sf(rate.hits - 1, rate.trials, rate.promised) < 1e-4)


def test_noise_is_of_the_stated_size_and_pairing_takes_the_seed_out() -> None:
    for noise in ("normal", "skewed", "lopsided"):
        values = simulated(np.random.default_rng(0), noise, 20_000, 2, {"arm1": 1.5})
        delta = values["arm1"] - values["base"]
        assert delta.std() == pytest.approx(PAIRED_SD, rel=0.03)
        assert delta.mean() / PAIRED_SD == pytest.approx(1.5, abs=0.03)
        assert values["base"].std() > 3
        assert abs(stats.skew(delta)) > 0.3 if noise == "lopsided" else abs(stats.skew(delta)) < 0.2


@pytest.mark.parametrize(("seeds", "arms"), [(3, 2), (5, 6)])
def test_equal_arms_are_rarely_told_apart(seeds: int, arms: int) -> None:
    assert not too_many(false_positives("normal", seeds, arms, studies=STUDIES))


def test_a_judge_without_correction_is_caught() -> None:
    """Five arms at an uncorrected 5% err in about one study of six; the same check must see it."""
    rate = false_positives("normal", 5, 6, studies=STUDIES, judged=uncorrected)
    assert too_many(rate)
    assert 0.1 < rate.rate < 0.25


def test_arms_at_the_margin_are_rarely_called_equivalent_and_well_within_they_are() -> None:
    for seeds, arms in ((4, 2), (4, 4)):
        assert not too_many(false_equivalence("normal", seeds, arms, studies=STUDIES))
    alone = false_equivalence("normal", 4, 2, studies=STUDIES)
    assert stats.binom.cdf(alone.hits, STUDIES, 0.05) > 1e-4  # and it errs as often as it may: 5% for one arm
    assert too_many(false_equivalence("normal", 4, 6, studies=STUDIES, judged=uncorrected))
    values = simulated(np.random.default_rng(0), "normal", 8, 2)
    (effect,) = judge(values, "x", baseline="base", direction="lower", margin=MARGIN)
    assert effect.word == "equivalent"


@pytest.mark.parametrize(("seeds", "arms"), [(3, 2), (5, 4), (8, 6)])
def test_the_detectable_effect_is_found_in_four_studies_of_five(seeds: int, arms: int) -> None:
    rate = power("normal", seeds, arms, studies=STUDIES)
    assert stats.binomtest(rate.hits, STUDIES, 0.8).pvalue > 1e-4
    half = power("normal", seeds, arms, studies=STUDIES, times=0.5)
    assert half.rate < 0.5 < rate.rate


@pytest.mark.parametrize("seeds", [3, 5])
def test_t_intervals_hold_the_truth_as_often_as_they_say(seeds: int) -> None:
    rate = coverage("normal", seeds, studies=STUDIES)
    assert (rate.trials, rate.promised) == (STUDIES, 0.95)
    assert stats.binomtest(rate.hits, rate.trials, 0.95).pvalue > 1e-4


def test_intervals_that_are_too_short_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """80% intervals in place of 95%: the check above must tell them apart."""
    monkeypatch.setattr("dsv2.statistics.calibration.t_interval", partial(t_interval, level=0.8))
    rate = coverage("normal", 5, studies=STUDIES)
    assert stats.binomtest(rate.hits, rate.trials, 0.95).pvalue < 1e-4


def test_rare_failures_break_the_promise_visibly() -> None:
    """Five seeds mostly miss a failure of one run in ten, and the t-test then swears that the arm is better."""
    assert false_positives("rare", 5, 2, studies=STUDIES).low > 0.1
    assert not too_many(false_positives("lopsided", 5, 2, studies=STUDIES))  # milder skew does no harm


def test_the_interval_of_a_share_is_scipys() -> None:
    for hits, trials in ((0, 20), (3, 50), (50, 50)):
        expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
        assert clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="hits=3, trials=2"):
        clopper_pearson(3, 2)


def test_pseudo_studies_of_identical_trials() -> None:
    rate = from_trials(aa(), "val/loss", 3, 2, 300)
    assert (rate.trials, rate.draws) == (60, 300)
    assert rate.low < 0.05 < rate.high
    assert 60 // 6 <= rate.effective <= 300
    assert from_trials(aa(), "val/loss", 3, 2, 300) == rate


def test_draws_that_share_trials_are_not_counted_as_independent() -> None:
    """Two odd trials of 24 decide most pseudo-studies: the interval must not shrink as though draws were new data."""
    trials = aa(24)
    trials["val/loss"] = np.random.default_rng(1).normal(0, 1, 24) * np.where(np.arange(24) < 2, 50.0, 1.0)
    rate = from_trials(trials, "val/loss", 3, 2, 600)
    naive = clopper_pearson(rate.rate * 600, 600)
    assert rate.effective < 450
    assert rate.high - rate.low > 1.15 * (naive.high - naive.low)


@pytest.mark.slow
def test_the_interval_from_trials_covers_the_rate_of_its_noise() -> None:
    """40 pools of 48 normal trials: the true rate, 5%, lies inside as often as 90% would give, less chance."""
    hits = 0
    for pool in range(40):
        rate = from_trials(aa(48, seed=pool), "val/loss", 3, 2, 400, seed=pool)
        hits += rate.low <= 0.05 <= rate.high
    assert hits >= stats.binom.ppf(0.001, 40, 0.9)


def test_trials_that_are_no_sample_are_refused_by_name() -> None:
    trials = aa(20)
    with pytest.raises(ValueError, match="20 trials; pseudo-studies of 12 need at least 24"):
        from_trials(trials, "val/loss", 4, 3, 10)
    twice = pd.concat([trials, trials.head(1).assign(arm="b")])
    with pytest.raises(ValueError, match="a seed 0, b seed 0 are the same run"):
        from_trials(twice, "val/loss", 3, 2, 10)
    with pytest.raises(ValueError, match="no column 'val/bpb'"):
        from_trials(trials, "val/bpb", 3, 2, 10)
    with pytest.raises(ValueError, match="val/loss is not finite in 1 trials"):
        from_trials(trials.assign(**{"val/loss": [math.nan, *trials["val/loss"][1:]]}), "val/loss", 3, 2, 10)
    failed = trials.assign(status=["failed"] * 15 + ["finished"] * 5)
    with pytest.raises(ValueError, match="5 trials"):
        from_trials(failed, "val/loss", 3, 2, 10)
    with pytest.raises(ValueError, match="n_seeds=1"):
        from_trials(trials, "val/loss", 1, 2, 10)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="noise='cauchy': must be one of normal"):
        simulated(rng, "cauchy", 3, 2)
    with pytest.raises(ValueError, match="effects: unknown arm arm2"):
        simulated(rng, "normal", 3, 2, {"arm2": 1.0})
    with pytest.raises(ValueError, match="seeds=1, arms=2"):
        simulated(rng, "normal", 1, 2)
