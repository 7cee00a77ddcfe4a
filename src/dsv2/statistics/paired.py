"""Statistics of differences paired by seed: intervals, p-values and power.

n seeds; `differences` (n,) are an arm's values minus the baseline's, seed by seed. All functions are pure.
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
MOST_SEEDS = 1000  # upper limit of the searches for a number of seeds

Values = NDArray[np.float64]


class Interval(NamedTuple):
    """The two ends of an interval; NaN if there is none."""

    low: float
    high: float


# ---- one set of paired differences -----------------------------------------------------------------------------------


def paired_differences(arm: Values, baseline: Values) -> Values:
    """Return arm minus baseline (n,), seed by seed, with rounding errors removed (`without_rounding`)."""
    if arm.shape != baseline.shape or arm.ndim != 1 or arm.size == 0:
        raise ValueError(f"values: shapes {arm.shape} (arm) and {baseline.shape} (baseline); must be one per seed each")
    size = max(np.abs(arm).max(), np.abs(baseline).max())
    return without_rounding(np.asarray(arm, dtype=float) - baseline, float(size))


def without_rounding(differences: Values, size: float) -> Values:
    """Remove rounding errors from differences (n,) of values as large as `size`: from the mean and from the spread.

    A t-test would find noise of 1e-16 significant.
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
    """Return the two-sided p-value of the paired t-test; 1 if all differences are zero.

    NaN for one seed, or if all differences are equal and nonzero, which gives no estimate of the noise.
    """
    n, scale = _checked(differences).size, np.abs(differences).max()
    if scale == 0 and n > 1:
        return 1.0
    if n < 2 or _no_spread(differences):
        return math.nan
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(n))
    return float(2 * special.stdtr(n - 1, -abs(t)))


def equivalence_p(differences: Values, margin: float) -> float:
    """Return the p-value of two one-sided t-tests (TOST): small if the mean lies inside (-margin, margin).

    0 if all differences are zero; NaN for one seed, or if all differences are equal and nonzero.
    """
    n = _checked(differences).size
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin}: must be positive and finite")
    if n < 2:
        return math.nan
    if _no_spread(differences):
        return math.nan if differences.any() else 0.0
    error = differences.std(ddof=1) / math.sqrt(n)
    return float(special.stdtr(n - 1, -(margin - abs(differences.mean())) / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the given order. NaN stays NaN and counts towards the family."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(np.where(np.isnan(p), 2.0, p), kind="stable")
    adjusted = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    result = np.empty(len(p))
    result[order] = adjusted
    return [float(value) for value in result]


def separation(arm: Values, baseline: Values) -> str:
    """Return "below" or "above" if all seeds of the arm lie beyond all of the baseline; else, or for n = 1, ""."""
    if min(arm.size, baseline.size) < 2:
        return ""
    return "below" if arm.max() < baseline.min() else "above" if arm.min() > baseline.max() else ""


# ---- what n seeds can detect -----------------------------------------------------------------------------------------


def paired_power(n: int, effect_in_sd: float, alpha: float = ALPHA) -> float:
    """Return the power of the two-sided t-test with n seeds; the effect is in sd of the paired differences."""
    critical = special.stdtrit(n - 1, 1 - alpha / 2)
    nc = abs(effect_in_sd) * math.sqrt(n)
    wrong_side = stats.nct.sf(critical, n - 1, -nc) if nc < 5 else 0.0  # below 3e-7 otherwise, where scipy returns NaN
    return float(stats.nct.sf(critical, n - 1, nc) + wrong_side)


@lru_cache(maxsize=4096)
def detectable_in_sd(n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the mean difference that n seeds detect with that power, in sd of the paired differences."""
    if n < 2:
        return math.inf
    highest = 1.0
    while paired_power(n, highest, alpha) < power:
        highest *= 2
    return float(optimize.brentq(lambda effect: paired_power(n, effect, alpha) - power, 0.0, highest))


def seeds_needed(effect: float, sd: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Return the fewest seeds that detect this mean difference; None if over 1,000."""
    if effect == 0:
        return None
    return _fewest(lambda n: detectable_in_sd(n, alpha, power) * sd <= abs(effect))


def seeds_for_equivalence(margin: float, sd: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Return the fewest seeds that show equivalence of equal arms within the margin; None if over 1,000."""

    def enough(n: int) -> bool:
        critical = special.stdtrit(n - 1, 1 - alpha)
        return bool(2 * stats.nct.sf(critical, n - 1, margin / sd * math.sqrt(n)) - 1 >= power)

    return _fewest(enough)


def _checked(differences: Values) -> Values:
    if differences.ndim != 1 or differences.size == 0 or not np.isfinite(differences).all():
        raise ValueError(f"differences={differences!r}: must be one finite number per seed")
    return differences


def _no_spread(differences: Values) -> bool:
    return bool(np.ptp(differences) <= 1e-12 * np.abs(differences).max())


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """Return the smallest n from 2 to 1,000 with `enough(n)`, which must be monotonic; None if there is none."""
    low, high = 2, MOST_SEEDS
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
