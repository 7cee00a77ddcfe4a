"""Statistics of differences paired by seed: intervals and power.

n seeds; `differences` (n,) are an arm's values minus the baseline's, seed by seed. All functions are pure.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

ALPHA = 0.05
POWER = 0.8
WIDEST = 300.0  # half the width of an interval that still says something, in standard deviations
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

    An interval would exclude 0 by noise of 1e-16.
    """
    rounding = 4 * np.finfo(float).eps * size
    if differences.size > 1 and np.ptp(differences) <= rounding:
        differences = np.full_like(differences, differences.mean())
    return np.where(np.abs(differences) <= rounding, 0.0, differences)


def limits(differences: Values, error: float = ALPHA) -> tuple[Values, Values]:
    """Return the ends (...) of Student's t intervals of the mean of (..., n) differences, missing it by `error`.

    Infinite without an estimate of the noise (one seed, or equal nonzero differences), and where an error near 0 makes
    them wider than `WIDEST`; both 0 if all differences are 0.
    """
    n = _checked(differences).shape[-1]
    mean, largest = differences.mean(-1), np.abs(differences).max(-1)
    if n < 2:
        return np.full_like(mean, -math.inf), np.full_like(mean, math.inf)
    width = abs(special.stdtrit(n - 1, error / 2)) / math.sqrt(n)  # half, in standard deviations
    sd = differences.std(-1, ddof=1)
    half = np.full_like(mean, math.inf) if width > WIDEST else np.asarray(width * sd)
    half = np.where(np.ptp(differences, -1) <= 1e-12 * largest, np.where(largest == 0, 0.0, math.inf), half)
    return np.asarray(mean - half), np.asarray(mean + half)


def t_interval(differences: Values, level: float = 1 - ALPHA) -> Interval:
    """Return the interval of the mean of (n,) differences by Student's t; NaN without an estimate of the noise."""
    low, high = map(float, limits(differences, 1 - level))
    return Interval(low, high) if math.isfinite(low) else Interval(math.nan, math.nan)


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
    """Return the fewest seeds whose interval lies inside the margin if the arms are equal; None if over 1,000."""

    def enough(n: int) -> bool:
        critical = special.stdtrit(n - 1, 1 - alpha / 2)
        return bool(2 * stats.nct.sf(critical, n - 1, margin / sd * math.sqrt(n)) - 1 >= power)

    return _fewest(enough)


def sd_limit(sd: float, n: int, level: float = POWER) -> float:
    """Return the upper one-sided confidence limit of a standard deviation that n normal values have."""
    return sd * math.sqrt((n - 1) / float(special.chdtri(n - 1, level)))


def _checked(differences: Values) -> Values:
    if differences.ndim < 1 or differences.size == 0 or not np.isfinite(differences).all():
        raise ValueError(f"differences={differences!r}: must be one finite number per seed")
    return differences


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """Return the smallest n from 2 to 1,000 with `enough(n)`, which must be monotonic; None if there is none."""
    low, high = 2, MOST_SEEDS
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
