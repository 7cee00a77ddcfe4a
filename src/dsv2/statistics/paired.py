"""Differences paired by seed: how certain they are, and which ones would not have been detected.

n seeds; `differences` (n,) are an arm's values minus the baseline's, seed by seed. Pure functions of numbers.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1000  # beyond this the answer is "not by more seeds"

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """Its two ends; NaN where there is none."""

    low: float
    high: float


# ---- one set of paired differences -----------------------------------------------------------------------------------


def paired_differences(arm: Values, baseline: Values) -> Values:
    """Return arm minus baseline (n,), seed by seed, `without_rounding`."""
    if arm.shape != baseline.shape or arm.ndim != 1 or arm.size == 0:
        raise ValueError(f"values: {arm.shape} of the arm, {baseline.shape} of the baseline; one number per seed each")
    size = max(np.abs(arm).max(), np.abs(baseline).max())
    return without_rounding(np.asarray(arm, dtype=float) - baseline, float(size))


def without_rounding(differences: Values, size: float) -> Values:
    """Set what is only rounding in differences (n,) of values as large as `size` to no difference and no spread.

    A t-test would take noise of 1e-16 for proof.
    """
    rounding = 4 * np.finfo(float).eps * size
    if differences.size > 1 and np.ptp(differences) <= rounding:
        differences = np.full_like(differences, differences.mean())
    return np.where(np.abs(differences) <= rounding, 0.0, differences)


def t_interval(differences: Values, level: float = 1 - ALPHA) -> Interval:
    """Return the interval of the mean of (n,) differences by Student's t; NaN for one seed."""
    n = _checked(differences).size
    if n < 2:
        return Interval(math.nan, math.nan)
    half = special.stdtrit(n - 1, (1 + level) / 2) * differences.std(ddof=1) / math.sqrt(n)
    return Interval(float(differences.mean() - half), float(differences.mean() + half))


def paired_p(differences: Values) -> float:
    """Return the two-sided p of the paired t-test; 1 where all differences are zero.

    NaN for one seed, or where equal non-zero differences leave nothing to estimate the noise from.
    """
    n, scale = _checked(differences).size, np.abs(differences).max()
    if scale == 0 and n > 1:
        return 1.0
    if n < 2 or _no_spread(differences):
        return math.nan
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(n))
    return float(2 * special.stdtr(n - 1, -abs(t)))


def equivalence_p(differences: Values, margin: float) -> float:
    """Return the p of two one-sided t-tests: small when the mean lies inside (-margin, margin), 0 where all are zero.

    NaN for one seed, or where equal non-zero differences leave nothing to estimate the noise from.
    """
    n = _checked(differences).size
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin}: positive and finite")
    if n < 2:
        return math.nan
    if _no_spread(differences):
        return math.nan if differences.any() else 0.0
    error = differences.std(ddof=1) / math.sqrt(n)
    return float(special.stdtr(n - 1, -(margin - abs(differences.mean())) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given. NaN stays NaN and counts as one of the family."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(np.where(np.isnan(p), 2.0, p), kind="stable")
    adjusted = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    result = np.empty(len(p))
    result[order] = adjusted
    return [float(value) for value in result]


def separation(arm: Values, baseline: Values) -> str:
    """Return "below" or "above" where all seeds of the arm lie beyond all of the baseline; else, or at n = 1, ""."""
    if min(arm.size, baseline.size) < 2:
        return ""
    return "below" if arm.max() < baseline.min() else "above" if arm.min() > baseline.max() else ""


# ---- what n seeds can detect -----------------------------------------------------------------------------------------


def paired_power(n: int, effect_in_sd: float, alpha: float = ALPHA) -> float:
    """Return the chance that n seeds reject, two-sided, when the mean difference is that many standard deviations."""
    critical = special.stdtrit(n - 1, 1 - alpha / 2)
    nc = abs(effect_in_sd) * math.sqrt(n)
    wrong_side = stats.nct.sf(critical, n - 1, -nc) if nc < 5 else 0.0  # under 3e-7 there, where scipy gives NaN
    return float(stats.nct.sf(critical, n - 1, nc) + wrong_side)


@lru_cache(maxsize=4096)
def detectable_in_sd(n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the mean difference, in standard deviations of the differences, that n seeds detect with that power."""
    if n < 2:
        return math.inf
    highest = 1.0
    while paired_power(n, highest, alpha) < power:
        highest *= 2
    return float(optimize.brentq(lambda effect: paired_power(n, effect, alpha) - power, 0.0, highest))


def seeds_needed(effect: float, sd: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Return the fewest seeds that detect this mean difference; None beyond 1,000."""
    if effect == 0:
        return None
    return _fewest(lambda n: detectable_in_sd(n, alpha, power) * sd <= abs(effect))


def seeds_for_equivalence(margin: float, sd: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Return the fewest seeds that show equivalence within the margin of equal arms; None beyond 1,000."""

    def enough(n: int) -> bool:
        critical = special.stdtrit(n - 1, 1 - alpha)
        return bool(2 * stats.nct.sf(critical, n - 1, margin / sd * math.sqrt(n)) - 1 >= power)

    return _fewest(enough)


def _checked(differences: Values) -> Values:
    if differences.ndim != 1 or differences.size == 0 or not np.isfinite(differences).all():
        raise ValueError(f"differences={differences!r}: one finite number per seed")
    return differences


def _no_spread(differences: Values) -> bool:
    return bool(np.ptp(differences) <= 1e-12 * np.abs(differences).max())


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """Return the smallest n from 2 to 1,000 for which `enough` holds, which then holds for all above."""
    low, high = 2, MOST_SEEDS
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
