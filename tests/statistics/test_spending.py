"""Looks spend what a function allows and no more, whatever is looked at and however often."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dsv2.statistics.spending import LATER, PLANNED, boundaries, error_of_interval, fraction, spent


def test_the_function_is_obrien_flemings() -> None:
    """One-sided 0.025, as tabulated for Lan and DeMets' function."""
    assert spent(0.25, 0.025) == pytest.approx(7.3668e-6, rel=1e-4)
    assert spent(0.5, 0.025) == pytest.approx(0.00152532, rel=1e-5)
    assert (spent(0.0, 0.025), spent(1.0, 0.025)) == (0.0, pytest.approx(0.025))


def test_boundaries_are_the_published_ones() -> None:
    assert boundaries((0.25,), 0.025) == pytest.approx([4.33263], abs=5e-6)
    assert boundaries((0.5, 1.0), 0.025) == pytest.approx([2.96259, 1.96860], abs=5e-6)
    assert boundaries((1.0,), 0.025) == pytest.approx([stats.norm.isf(0.025)])


def test_boundaries_agree_with_the_multivariate_normal() -> None:
    """Crossing none of four boundaries by a Brownian motion, by scipy's own integration."""
    fractions = np.array([0.25, 0.4, 0.75, 1.0])
    z = boundaries(tuple(fractions), 0.025)
    correlation = np.sqrt(np.minimum.outer(fractions, fractions) / np.maximum.outer(fractions, fractions))
    inside = stats.multivariate_normal(cov=correlation, allow_singular=False, abseps=1e-7, seed=0).cdf(z)
    assert 1 - inside == pytest.approx(0.025, abs=2e-6)


def test_a_step_of_one_seed_in_many_is_integrated_exactly_enough() -> None:
    fractions = tuple(n / 60 for n in range(2, 61))
    z = boundaries(fractions, 0.025)
    rng, steps = np.random.default_rng(0), np.diff((0, *fractions))
    crossed = np.zeros(100_000, dtype=bool)
    motion = np.zeros(crossed.size)
    for step, t, limit in zip(steps, fractions, z, strict=True):
        motion += rng.normal(0, math.sqrt(step), crossed.size)
        crossed |= motion > limit * math.sqrt(t)
    assert stats.binomtest(int(crossed.sum()), crossed.size, 0.025).pvalue > 1e-4


def test_the_fraction_is_of_the_seeds_that_are_there() -> None:
    assert fraction(5, 16) == 0.3125
    assert (fraction(16, 16), fraction(20, 16)) == (1.0, 1.0)


def seeds(*numbers: int) -> list[frozenset[int]]:
    return [frozenset(range(n)) for n in numbers]


def test_one_look_at_all_seeds_spends_four_fifths() -> None:
    assert error_of_interval(seeds(4), 4) == pytest.approx(0.04)
    assert error_of_interval(seeds(4), 4, family=5) == pytest.approx(0.008)
    assert error_of_interval(seeds(9), 4) == pytest.approx(0.04)


def test_further_seeds_spend_half_of_what_is_left() -> None:
    assert [error_of_interval(seeds(4, 8, 12)[:k], 4) for k in (1, 2, 3)] == pytest.approx([0.04, 0.005, 0.0025])
    assert error_of_interval([*seeds(4, 8), frozenset({20, 21})], 4, family=2) == pytest.approx(0.00125)


def test_an_early_look_spends_little_and_costs_the_last_next_to_nothing() -> None:
    first, last = error_of_interval(seeds(2), 5), error_of_interval(seeds(2, 5), 5)
    assert 0 < first < 0.001
    assert 0.0395 < last < 0.04


@pytest.mark.parametrize(
    "looks",
    [
        seeds(2, 3, 4, 5, 6, 7, 8, 9, 10),
        [frozenset({0, 1}), frozenset({2, 3}), frozenset({4, 5}), frozenset(range(8))],
        [frozenset({0, 1, 2}), frozenset({5, 6}), frozenset({0, 1, 2, 3}), frozenset({8, 9}), frozenset(range(20))],
        [frozenset({i, i + 1}) for i in range(0, 40, 2)],
        seeds(16, 2, 3, 4),
    ],
)
def test_no_sequence_of_looks_spends_more_than_there_is(looks: list[frozenset[int]]) -> None:
    """By the union bound where looks are no growing set of seeds; a growing one crosses its boundaries as planned."""
    last = 8
    errors = [error_of_interval(looks[: k + 1], last) for k in range(len(looks))]
    nested = all(low < high for low, high in itertools.pairwise(looks))
    if nested:
        reached = next(k for k, look in enumerate(looks) if len(look) >= last)
        assert sum(errors[reached + 1 :]) < LATER
        assert max(errors[: reached + 1]) < PLANNED
    else:
        assert sum(errors) < PLANNED + LATER + 1e-12
    assert all(0 <= error < 1 for error in errors)


def test_another_set_of_as_many_seeds_has_nothing_to_spend_before_the_last() -> None:
    assert error_of_interval([frozenset({0, 1}), frozenset({2, 3})], 8) == 0


@pytest.mark.parametrize("bad", [(math.nan, 0.025), (0.5, math.nan), (-0.1, 0.025), (0.5, 0.0), (0.5, 1.0)])
def test_undefined_fractions_and_levels_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        spent(*bad)


def test_looks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="fractions="):
        boundaries((0.5, 0.5), 0.025)
    with pytest.raises(ValueError, match="looks="):
        error_of_interval([], 4)
    with pytest.raises(ValueError, match="looks="):
        error_of_interval([frozenset({1})], 4)
    with pytest.raises(ValueError, match="family="):
        error_of_interval(seeds(4), 4, family=0)
