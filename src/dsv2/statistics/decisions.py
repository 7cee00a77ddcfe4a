"""Which decisions of a small rung hold on the next, and what that says before the next is run.

A rung has a difference between two arms, paired by seed: mean d, standard error se over n seeds, standard deviation s.
If the true difference and the noise are the same on the next rung, the mean of n' seeds there has the same sign with
chance T(k |d| / (s sqrt(k/n + 1/n'))), where T is Student's distribution function with n - 1 degrees of freedom and
k = t^2 / (t^2 + se^2) shrinks d. t is how far the true differences of a metric's pairs are spread, estimated from all
of them: the largest of many small differences is mostly noise. A rung decides between two arms if |d| > 2 se and that
chance is at least LEAST_CHANCE. On the next rung the decision holds if |d| > 2 se there with the same sign, is reversed
if the sign is the other, and else is open.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from dsv2.statistics.calibration import clopper_pearson
from dsv2.statistics.paired import Interval, Values, paired_differences, seeds_needed

LEAST_CHANCE = 0.9
ERRORS = 2.0  # standard errors of a decision
BINS = (0.5, 0.7, 0.9, 1.0)  # ends of the ranges of chances whose calibration is shown


class Difference(NamedTuple):
    """Two arms on one rung in one metric."""

    mean: float
    sd: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the mean is more than ERRORS standard errors from 0."""
        return abs(self.mean) > ERRORS * self.sd / math.sqrt(self.n)

    def chance(self, seeds: int, spread: float = math.inf) -> float:
        """Return the chance that the mean of `seeds` seeds of the next rung has the same sign; 0.5: nothing known.

        `spread` is the standard deviation of the true differences of all pairs; infinite for a pair by itself.
        """
        if self.n < 2 or self.mean == 0 or spread == 0:
            return 0.5
        if self.sd == 0:
            return 1.0
        kept = 1 / (1 + self.sd**2 / self.n / spread**2)
        far = kept * abs(self.mean) / (self.sd * math.sqrt(kept / self.n + 1 / seeds))
        return float(special.stdtr(self.n - 1, far))


def spread_of(differences: Sequence[Difference]) -> float:
    """Return the standard deviation of the true differences around 0: that of the means, less what noise adds."""
    extra = [each.mean**2 - each.sd**2 / each.n for each in differences]
    return math.sqrt(max(float(np.mean(extra)), 0.0))


class Step(NamedTuple):
    """What one metric decided on a rung, and what the next rung said of it."""

    metric: str
    rung: str
    after: str  # the next rung
    pairs: int
    decided: int
    held: int
    reversed: int
    share: float  # held among those that the next rung decided; NaN if there is none
    interval: Interval  # 95%, as if pairs were independent; arms that share a baseline are not
    same_sign: int  # pairs, decided or not, with one sign on both rungs


class Bin(NamedTuple):
    """Pairs whose predicted chance lies in a range: how often the next rung had the same sign."""

    low: float
    high: float
    pairs: int
    predicted: float  # mean chance
    observed: float
    interval: Interval


def difference(rung: pd.DataFrame, metric: str, first: str, second: str) -> Difference | None:
    """Return `first` minus `second` over the seeds of one rung (columns arm, seed, metric); None if not all have it."""
    wide = rung[rung["arm"].isin([first, second])].pivot(index="seed", columns="arm", values=metric)
    if not {first, second} <= set(wide.columns) or wide[[first, second]].isna().any(axis=None) or len(wide) < 2:
        return None
    delta: Values = paired_differences(wide[first].to_numpy(dtype=float), wide[second].to_numpy(dtype=float))
    return Difference(float(delta.mean()), float(delta.std(ddof=1)), len(delta))


def compare(
    rungs: Mapping[str, pd.DataFrame], metrics: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> tuple[list[Step], list[Bin]]:
    """Compare each rung with the next in every metric, for these pairs of arms.

    `rungs` maps scales, in the order of compute, to tables of finished runs. Returns a step per metric and rung that
    has any pair, and the calibration of the predicted chances over all of them.
    """
    steps, predicted = list[Step](), list[tuple[float, bool]]()
    for (name, rung), (after, above) in itertools.pairwise(rungs.items()):
        for metric in metrics:
            if metric not in rung or metric not in above:
                continue
            both = [(difference(rung, metric, *pair), difference(above, metric, *pair)) for pair in pairs]
            known = [(low, high) for low, high in both if low is not None and high is not None]
            if known:
                spread = spread_of([low for low, _ in known])
                steps.append(_step(metric, name, after, known, spread))
                predicted += [(low.chance(high.n, spread), low.mean * high.mean > 0) for low, high in known]
    return steps, _calibration(predicted)


def _step(metric: str, name: str, after: str, known: Sequence[tuple[Difference, Difference]], spread: float) -> Step:
    decided = [(low, high) for low, high in known if low.clear and low.chance(high.n, spread) >= LEAST_CHANCE]
    held = sum(high.clear and low.mean * high.mean > 0 for low, high in decided)
    against = sum(high.clear and low.mean * high.mean < 0 for low, high in decided)
    total = held + against
    interval = clopper_pearson(held, total) if total else Interval(math.nan, math.nan)
    same = sum(low.mean * high.mean > 0 for low, high in known)
    share = held / total if total else math.nan
    return Step(metric, name, after, len(known), len(decided), held, against, share, interval, same)


def _calibration(predicted: Sequence[tuple[float, bool]]) -> list[Bin]:
    bins = []
    for low, high in itertools.pairwise(BINS):
        inside = [(c, same) for c, same in predicted if low <= c < high or (high == BINS[-1] and c == high)]
        if inside:
            hits = sum(same for _, same in inside)
            mean = float(np.mean([chance for chance, _ in inside]))
            bins.append(Bin(low, high, len(inside), mean, hits / len(inside), clopper_pearson(hits, len(inside))))
    return bins


def earliest(steps: Sequence[Step]) -> list[str]:
    """Return the metrics in the order in which they decide: those that hold most decisions on the lowest rungs first.

    A metric whose decisions were reversed more often than 1 - LEAST_CHANCE is left out.
    """
    reliable = [step for step in steps if step.held and step.share >= LEAST_CHANCE]
    order = {rung: number for number, rung in enumerate(dict.fromkeys(step.rung for step in steps))}
    best: dict[str, tuple[int, float]] = {}
    for step in reliable:
        rank = (order[step.rung], -step.held / step.pairs)
        best[step.metric] = min(best.get(step.metric, rank), rank)
    return sorted(best, key=lambda metric: best[metric])


class Offer(NamedTuple):
    """What it takes on one rung to answer one question."""

    scale: str
    known: Difference
    seeds: int | None  # that detect the difference with 80% power; None if over 1,000
    flops: float  # of both arms with so many seeds; infinite without seeds
    chance: float  # that the rung after it, with as many seeds, has the same sign

    @property
    def answers(self) -> bool:
        """Whether the rung can be said to decide."""
        return self.seeds is not None and self.chance >= LEAST_CHANCE


def offer(scale: str, known: Difference, flops_per_seed: float) -> Offer:
    """Say what a rung takes, from a pilot's difference on it; `flops_per_seed` is of both arms."""
    seeds = seeds_needed(known.mean, known.sd) if known.sd > 0 else 2
    if seeds is None:
        return Offer(scale, known, None, math.inf, known.chance(known.n))
    planned = known._replace(n=max(seeds, known.n))
    return Offer(scale, known, seeds, seeds * flops_per_seed, planned.chance(planned.n))


def cheapest(offers: Sequence[Offer]) -> Offer | None:
    """Return the offer that answers at the least compute; None if none does."""
    return min((each for each in offers if each.answers), key=lambda each: each.flops, default=None)
