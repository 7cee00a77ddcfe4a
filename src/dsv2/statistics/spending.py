"""How much error each look at a growing study may spend, so that all its verdicts together err in at most 5%.

A study has a number of seeds at which it is to be decided, `last`. Looks at fewer seeds and the look that reaches
`last` spend 4% together, by the O'Brien-Fleming-like function of Lan and DeMets (1983): almost nothing early. Looks
after that spend half of what is left of the other 1% each: 0.5%, 0.25% and so on. The contrasts of a study share what
a look spends equally (Bonferroni).

While every look adds seeds to the one before, its level accounts for the correlation between looks; the normal
boundary's tail probability is used for Student's t. For any other sequence of seed sets, and for later looks, the
amounts spent simply add up, so that no choice of looks spends more than 5%.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

PLANNED = 0.04  # spent by the looks up to the last planned number of seeds
LATER = 0.01  # left for all looks after that
LOWEST = -9.0  # standard deviations below which a path's probability is neglected


def fraction(n: int, last: int) -> float:
    """Return the information fraction of n seeds, as they are now; 1 beyond `last`."""
    if n < 1 or last < 1:
        raise ValueError(f"n={n}, last={last}: must be at least 1")
    return min(n / last, 1.0)


def spent(fraction: float, alpha: float) -> float:
    """Return the one-sided error spent up to an information fraction from 0 to 1, of `alpha` in total."""
    if not (0 <= fraction <= 1 and 0 < alpha < 1):
        raise ValueError(f"fraction={fraction}, alpha={alpha}: must be from 0 to 1, and between 0 and 1")
    return float(2 * special.ndtr(special.ndtri(alpha / 2) / math.sqrt(fraction))) if fraction > 0 else 0.0


@lru_cache(maxsize=4096)
def boundaries(fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Return the normal boundary of each look for one-sided `alpha`; infinite where nothing can be spent.

    `fractions` increase from above 0 to at most 1. Raises ValueError for others.
    """
    if not fractions or not all(low < high for low, high in zip((0.0, *fractions), (*fractions, 1.0001), strict=True)):
        raise ValueError(f"fractions={fractions}: must increase, from above 0 to at most 1")
    limits: list[float] = []
    nodes, weights = np.empty(0), np.empty(0)  # paths that have crossed nothing, as a density on nodes
    before = 0.0
    for t in fractions:
        step = math.sqrt(t - before)
        budget = spent(t, alpha) - (spent(before, alpha) if before else 0.0)
        scale = math.sqrt(t)
        if before == 0.0:
            z = -float(special.ndtri(budget)) if budget > 0 else math.inf
        else:
            z = _limit(nodes, weights, step, scale, budget)
        limits.append(z)
        top = min(z, -LOWEST) * scale
        count = int(np.clip(10 * (top - LOWEST * scale) / _smallest(fractions), 200, 3000))
        at, width = np.polynomial.legendre.leggauss(count)
        half = (top - LOWEST * scale) / 2
        new = half * at + top - half
        if before == 0.0:
            density = np.exp(-((new / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))
        else:
            kernel = np.exp(-(((new[:, None] - nodes) / step) ** 2) / 2) / (step * math.sqrt(2 * math.pi))
            density = kernel @ weights
        nodes, weights, before = new, density * half * width, t
    return tuple(limits)


def error_of_interval(looks: Sequence[frozenset[int]], last: int, family: int = 1) -> float:
    """Return the two-sided error of each interval at the last of `looks`, for a family of that many contrasts.

    `looks` are the distinct sets of seeds in the order they were looked at. 0 if that look has nothing to spend, as a
    second look at another set of as many seeds.
    """
    if not looks or any(len(seeds) < 2 for seeds in looks):
        raise ValueError(f"looks={looks!r}: must be at least one, of two seeds or more each")
    if family < 1:
        raise ValueError(f"family={family}: must be at least 1")
    fractions = [fraction(len(seeds), last) for seeds in looks]
    reached = fractions.index(1.0) if 1.0 in fractions else len(looks)
    if len(looks) - 1 > reached:
        return LATER / 2 ** (len(looks) - 1 - reached) / family
    each = PLANNED / (2 * family)
    if all(low < high for low, high in itertools.pairwise(looks)):
        return 2 * float(special.ndtr(-boundaries(tuple(fractions), each)[-1]))
    earlier = max(fractions[:-1])
    return 2 * max(spent(fractions[-1], each) - spent(earlier, each), 0.0)


def _limit(nodes: NDArray[np.float64], weights: NDArray[np.float64], step: float, scale: float, budget: float) -> float:
    """Return the boundary that paths on `nodes` cross with probability `budget` after one more step."""

    def beyond(z: float) -> float:
        return float(weights @ special.ndtr((nodes - z * scale) / step)) - budget

    if budget <= 0 or beyond(-LOWEST) >= 0:
        return math.inf
    return float(optimize.brentq(beyond, 0.0, -LOWEST, xtol=1e-12))


def _smallest(fractions: Sequence[float]) -> float:
    return min(math.sqrt(high - low) for low, high in zip((0.0, *fractions), fractions, strict=False))
