"""Tests of paired differences agree with scipy, and say how many seeds would be needed."""

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


def test_t_interval_and_p_are_scipys() -> None:
    expected = stats.ttest_1samp(DELTA, 0)
    assert st.paired_p(DELTA) == pytest.approx(expected.pvalue, rel=1e-12)
    assert st.t_interval(DELTA) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)


def test_equivalence_p_is_the_larger_one_sided_test() -> None:
    margin = 0.4
    lower = stats.ttest_1samp(DELTA, -margin, alternative="greater").pvalue
    upper = stats.ttest_1samp(DELTA, margin, alternative="less").pvalue
    assert st.equivalence_p(DELTA, margin) == pytest.approx(max(lower, upper), rel=1e-12)
    with pytest.raises(ValueError, match="margin"):
        st.equivalence_p(DELTA, 0.0)


def test_holm_matches_a_worked_example_and_keeps_nan() -> None:
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = st.holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.03)  # the unknown one still counts in the family
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


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
    p = [st.equivalence_p(RNG.normal(0, 0.028, enough), 0.03) for _ in range(2000)]
    assert 0.77 < np.mean(np.array(p) < 0.05) < 0.9


def test_separation_is_of_all_seeds() -> None:
    assert st.separation(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == "below"
    assert st.separation(np.array([5.0, 6.0]), np.array([3.0, 4.0])) == "above"
    assert st.separation(np.array([1.0, 3.5]), np.array([3.0, 4.0])) == ""


def test_equal_differences_leave_no_noise_for_equivalence() -> None:
    assert math.isnan(st.equivalence_p(np.full(4, 0.25), 1.0))
    assert math.isnan(st.equivalence_p(np.full(4, 0.1) + np.array([0, 1e-17, 0, 0]), 1.0))
    assert st.equivalence_p(np.zeros(4), 1.0) == 0
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="margin="):
            st.equivalence_p(DELTA, margin)


def test_differences_are_arm_minus_baseline_without_rounding() -> None:
    base = np.array([0.9, 1.7, 3.3])
    np.testing.assert_allclose(st.paired_differences(base + np.array([0.1, 0.2, -0.3]), base), [0.1, 0.2, -0.3])
    shifted = st.paired_differences(base + 0.3, base)
    assert np.ptp(shifted) == 0 < np.ptp((base + 0.3) - base)
    assert (st.paired_differences(base * (1 + 2e-16), base) == 0).all()
    with pytest.raises(ValueError, match=r"\(2,\) \(arm\) and \(3,\) \(baseline\)"):
        st.paired_differences(base[:2], base)


def test_one_seed_has_neither_interval_nor_p() -> None:
    one_seed = np.array([0.3])
    assert all(math.isnan(value) for value in (*st.t_interval(one_seed), st.paired_p(one_seed)))
    assert math.isnan(st.equivalence_p(one_seed, 1.0))
    assert st.detectable_in_sd(1) == math.inf
    for refused in (np.array([]), np.array([1.0, math.nan])):
        with pytest.raises(ValueError, match="one finite number per seed"):
            st.paired_p(refused)
