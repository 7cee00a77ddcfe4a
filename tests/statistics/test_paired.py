"""Intervals of paired differences agree with scipy, and it is known how many seeds would be needed."""

import math

import numpy as np
import pytest
from scipy import stats

from dsv2.statistics import paired as st

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
DELTA = np.array([-0.31, -0.22, -0.45, 0.04, -0.18, -0.27])


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Each test draws the same numbers, whichever others run."""
    RNG.bit_generator.state = START


@pytest.mark.parametrize("error", [0.05, 0.004, 1e-7])
def test_intervals_are_scipys(error: float) -> None:
    expected = stats.ttest_1samp(DELTA, 0).confidence_interval(1 - error)
    assert st.t_interval(DELTA, 1 - error) == pytest.approx(tuple(expected), rel=1e-6)
    assert st.t_interval(DELTA) == pytest.approx(tuple(stats.ttest_1samp(DELTA, 0).confidence_interval(0.95)))


def test_limits_of_many_studies_are_those_of_each() -> None:
    many = RNG.normal(0, 1, (7, 3, 5))
    low, high = st.limits(many, 0.01)
    assert low.shape == high.shape == (7, 3)
    for i in range(7):
        for j in range(3):
            assert (low[i, j], high[i, j]) == pytest.approx(st.t_interval(many[i, j], 0.99), rel=1e-12)


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.05), (6, 0.05), (6, 0.01)])
def test_the_detectable_effect_is_found_in_four_of_five_studies(n: int, alpha: float) -> None:
    trials = 20_000
    samples = RNG.normal(st.detectable_in_sd(n, alpha), 1, (trials, n))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))
    detected = (2 * stats.t.sf(np.abs(t), n - 1) < alpha).sum()
    assert stats.binomtest(int(detected), trials, 0.8).pvalue > 1e-4


def test_seeds_needed_inverts_the_detectable_effect() -> None:
    n = st.seeds_needed(0.017, 0.028, 0.01)
    assert n is not None
    assert st.detectable_in_sd(n, 0.01) * 0.028 <= 0.017 < st.detectable_in_sd(n - 1, 0.01) * 0.028
    assert st.seeds_needed(1e-5, 0.028) is None
    enough = st.seeds_for_equivalence(0.03, 0.028)
    assert enough is not None
    low, high = st.limits(RNG.normal(0, 0.028, (2000, enough)))
    assert 0.77 < np.mean((low > -0.03) & (high < 0.03)) < 0.9


def test_the_limit_of_a_standard_deviation_is_above_it_in_four_of_five() -> None:
    sds = RNG.normal(0, 2, (5000, 4)).std(1, ddof=1)
    above = sum(st.sd_limit(float(sd), 4) > 2 for sd in sds)
    assert stats.binomtest(above, 5000, 0.8).pvalue > 1e-4


def test_equal_differences_leave_no_noise() -> None:
    for equal in (np.full(4, 0.25), np.full(4, 0.1) + np.array([0, 1e-17, 0, 0])):
        assert tuple(map(float, st.limits(equal))) == (-math.inf, math.inf)
        assert all(math.isnan(end) for end in st.t_interval(equal))
    assert st.t_interval(np.zeros(4)) == (0, 0)


def test_next_to_no_error_leaves_no_limit() -> None:
    for error in (0.0, 1e-16):
        assert tuple(map(float, st.limits(DELTA, error))) == (-math.inf, math.inf)
    assert tuple(map(float, st.limits(np.zeros(3), 0.0))) == (0, 0)


def test_differences_are_arm_minus_baseline_without_rounding() -> None:
    base = np.array([0.9, 1.7, 3.3])
    np.testing.assert_allclose(st.paired_differences(base + np.array([0.1, 0.2, -0.3]), base), [0.1, 0.2, -0.3])
    shifted = st.paired_differences(base + 0.3, base)
    assert np.ptp(shifted) == 0 < np.ptp((base + 0.3) - base)
    assert (st.paired_differences(base * (1 + 2e-16), base) == 0).all()
    with pytest.raises(ValueError, match=r"\(2,\) \(arm\) and \(3,\) \(baseline\)"):
        st.paired_differences(base[:2], base)


def test_one_seed_has_no_interval() -> None:
    one_seed = np.array([0.3])
    assert all(math.isnan(value) for value in st.t_interval(one_seed))
    assert tuple(map(float, st.limits(one_seed))) == (-math.inf, math.inf)
    assert st.detectable_in_sd(1) == math.inf
    for refused in (np.array([]), np.array([1.0, math.nan])):
        with pytest.raises(ValueError, match="one finite number per seed"):
            st.t_interval(refused)
