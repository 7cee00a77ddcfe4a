"""The promises of verdicts hold on simulated studies, judges that break them are caught, and real trials are asked."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import dsv2.statistics.calibration as calibration
from dsv2.statistics.calibration import (
    MARGIN,
    NOISE,
    PAIRED_SD,
    Rate,
    clopper_pearson,
    coverage,
    false_claims,
    false_verdicts,
    from_trials,
    judged_alike,
    power,
    simulated,
)
from dsv2.statistics.paired import limits
from tests.references.trials import aa

STUDIES = 4000


def too_many(rate: Rate) -> bool:
    """More hits than promised, beyond what the binomial gives once in ten thousand."""
    return bool(stats.binom.sf(rate.hits - 1, rate.trials, rate.promised) < 1e-4)


def test_noise_is_of_the_stated_size_and_metrics_of_one_arm_go_together() -> None:
    for noise in ("normal", "skewed", "lopsided", "heavy"):
        delta = simulated(np.random.default_rng(0), noise, 20_000, 4, 2, (1.5, 0.0, 0.0, 0.0))
        assert delta.shape == (20_000, 4, 2)
        assert delta[:, 1].std() == pytest.approx(PAIRED_SD, rel=0.05)
        assert delta[:, 0].mean() == pytest.approx(1.5, abs=0.04)
        assert abs(stats.skew(delta[:, 1].ravel())) > 0.3 or noise != "lopsided"
        between = np.corrcoef(delta[..., 0].T)
        assert between[0, 3] == pytest.approx(0.8, abs=0.1)  # one arm in two metrics
        assert between[0, 1] == pytest.approx(0.5, abs=0.1)  # two arms with one baseline
    unequal = simulated(np.random.default_rng(0), "unequal", 20_000, 3, 2)
    assert unequal.std((0, 2)) == pytest.approx([math.sqrt(17), math.sqrt(5), math.sqrt(2)], rel=0.05)


@pytest.mark.parametrize("noise", NOISE)
def test_simulated_studies_are_judged_as_those_of_reports(noise: str) -> None:
    assert judged_alike(noise, 30)


def test_another_judge_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "limits", lambda delta, error: limits(delta, 1.01 * error))
    assert not judged_alike("normal", 30)


@pytest.mark.parametrize(("noise", "seeds"), [("normal", 3), ("heavy", 4), ("unequal", 5), ("skewed", 8)])
def test_equal_arms_are_rarely_told_apart(noise: str, seeds: int) -> None:
    for contrasts in (1, 6):
        rate = false_verdicts(noise, [seeds], contrasts, studies=STUDIES)
        assert not too_many(rate)
        assert rate.rate > 0.01  # and the test is not asleep


def test_looking_after_every_seed_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    every = list(range(2, 17))
    assert not too_many(false_verdicts("normal", every, 3, studies=STUDIES, last=4))
    assert not too_many(false_verdicts("normal", [4, 8, 16], 3, studies=STUDIES))
    monkeypatch.setattr(calibration, "error_of_interval", lambda looks, last, family: 0.05 / family)
    naive = false_verdicts("normal", every, 3, studies=STUDIES, last=4)
    assert too_many(naive)
    assert naive.rate > 0.12


def test_a_family_for_each_metric_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "error_of_interval", lambda looks, last, family: 0.05)
    assert too_many(false_verdicts("normal", [5], 6, studies=STUDIES))


def test_arms_at_the_margin_are_rarely_called_equivalent() -> None:
    rate = false_verdicts("normal", [8], 6, studies=STUDIES, truth=(MARGIN,))
    assert not too_many(rate)
    assert rate.rate > 0.005


def test_a_claim_is_false_where_the_truth_is_another() -> None:
    """Better, worse, equivalent, undecided, identical, better within the margin."""
    low, high = np.array([-3, 1, -0.5, -2, 0, -0.4]), np.array([-1, 3, 0.5, 2, 0, -0.1])
    false = [false_claims(low, high, (true,), 1.0).astype(int).tolist() for true in (0.0, -0.5, 0.5, -1.0)]
    assert false == [
        [1, 1, 0, 0, 0, 1],
        [0, 1, 0, 0, 1, 0],
        [1, 0, 0, 0, 1, 1],
        [0, 1, 1, 0, 1, 1],
    ]


def test_all_intervals_hold_together() -> None:
    for decided in (False, True):
        rate = coverage("normal", 4, 6, studies=STUDIES, truth=(0.0, MARGIN, 20.0), decided=decided)
        assert stats.binom.cdf(rate.hits, STUDIES, 0.95) > 1e-4
        assert rate.rate < 0.999


@pytest.mark.parametrize(("seeds", "contrasts"), [(3, 1), (5, 3), (8, 6)])
def test_power_is_as_stated(seeds: int, contrasts: int) -> None:
    rate = power("normal", seeds, contrasts, studies=STUDIES)
    assert stats.binomtest(rate.hits, STUDIES, 0.8).pvalue > 1e-4
    half = power("normal", seeds, contrasts, studies=STUDIES, times=0.5)
    assert half.rate < 0.5 < rate.rate


def test_rare_failures_break_the_promise_visibly() -> None:
    """Five seeds mostly miss a failure of one run in ten, and the interval then swears that the arm is better."""
    assert false_verdicts("rare", [5], 1, studies=STUDIES).low > 0.1


def test_the_interval_of_a_share_is_scipys() -> None:
    for hits, trials in ((0, 20), (3, 50), (50, 50)):
        expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
        assert clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="hits=3, trials=2"):
        clopper_pearson(3, 2)


BOTH = ("val/loss", "routing/max_violation")


def test_pseudo_studies_of_identical_trials() -> None:
    rate = from_trials(aa(), ["val/loss"], 3, 2, 300)
    assert (rate.metric, rate.contrasts, rate.trials, rate.draws) == ("val/loss", 1, 60, 300)
    assert rate.low < 0.05
    assert 60 // 6 <= rate.effective <= 300
    assert from_trials(aa(), ["val/loss"], 3, 2, 300) == rate


def test_a_pseudo_study_with_two_false_words_counts_once() -> None:
    """Two copies of one metric err together; the study's rate is that of one, at half its share of the error."""
    trials = aa(200)
    trials["val/bpb"] = 2 * trials["val/loss"]
    both = from_trials(trials, ["val/loss", "val/bpb"], 3, 2, 4000)
    one = from_trials(trials, ["val/loss"], 3, 2, 4000)
    assert (both.metric, both.contrasts) == ("", 2)
    assert both.rate < one.rate
    assert from_trials(trials, BOTH, 3, 3, 4000).high < 0.07


def test_draws_that_share_trials_are_not_counted_as_independent() -> None:
    """Two odd trials of 24 decide most pseudo-studies: the interval must not shrink as though draws were new data."""
    trials = aa(24)
    trials["val/loss"] = np.random.default_rng(1).normal(0, 1, 24) * np.where(np.arange(24) < 2, 50.0, 1.0)
    rate = from_trials(trials, ["val/loss"], 3, 2, 600)
    naive = clopper_pearson(rate.rate * 600, 600)
    assert rate.effective < 450
    assert rate.high - rate.low > 1.15 * (naive.high - naive.low)


@pytest.mark.slow
def test_the_interval_from_trials_covers_the_rate_of_its_noise() -> None:
    """40 pools of 48 normal trials: the true rate, 4%, lies inside as often as 90% would give, less chance."""
    hits = 0
    for pool in range(40):
        rate = from_trials(aa(48, seed=pool), ["val/loss"], 3, 2, 400, seed=pool)
        hits += rate.low <= 0.04 <= rate.high
    assert hits >= stats.binom.ppf(0.001, 40, 0.9)


def test_trials_that_are_no_sample_are_refused_by_name() -> None:
    trials = aa(20)
    with pytest.raises(ValueError, match="20 trials; pseudo-studies of 12 need at least 24"):
        from_trials(trials, ["val/loss"], 4, 3, 10)
    twice = pd.concat([trials, trials.head(1).assign(arm="b")])
    with pytest.raises(ValueError, match="a seed 0, b seed 0 are the same run"):
        from_trials(twice, ["val/loss"], 3, 2, 10)
    with pytest.raises(ValueError, match="no column 'val/bpb'"):
        from_trials(trials, ["val/loss", "val/bpb"], 3, 2, 10)
    holed = trials.assign(**{"val/loss": [math.nan, *trials["val/loss"][1:]]})
    with pytest.raises(ValueError, match="val/loss is not finite in 1 trials"):
        from_trials(holed, BOTH, 3, 2, 10)
    failed = trials.assign(status=["failed"] * 15 + ["finished"] * 5)
    with pytest.raises(ValueError, match="5 trials"):
        from_trials(failed, ["val/loss"], 3, 2, 10)
    with pytest.raises(ValueError, match="n_seeds=1"):
        from_trials(trials, ["val/loss"], 1, 2, 10)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="noise='cauchy': must be one of normal"):
        simulated(rng, "cauchy", 10, 3, 2)
    with pytest.raises(ValueError, match="seeds=1, contrasts=2"):
        simulated(rng, "normal", 10, 2, 1)
