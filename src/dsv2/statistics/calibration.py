"""Calibration of verdicts: how often studies say something false, and how often real effects are found.

S studies, m contrasts, n seeds. Simulated studies are judged by `verdicts.decide` on `paired.limits`, as those of
reports are, many at a time. The unit is the standard deviation of the baseline about the seed's effect, which all arms
share and pairing removes. Rates have Clopper-Pearson intervals. `from_trials` does the same with real trials that
differ only in their random seed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from dsv2.statistics.paired import ALPHA, POWER, Interval, Values, detectable_in_sd, limits
from dsv2.statistics.spending import error_of_interval
from dsv2.statistics.verdicts import Contrast, decide, judge, within

PAIRED_SD = math.sqrt(2)  # of a paired difference, in units of the baseline's
MARGIN = 3 * PAIRED_SD
SHARED_BY_METRICS = 0.8  # correlation of an arm's metrics
ARMS = 3  # besides the baseline; further contrasts are the same arms in another metric
UNEQUAL = (4.0, 2.0, 1.0)  # standard deviations of the arms, with unequal noise
NOISE = {
    "normal": "normal noise",
    "heavy": "Student's t with 3 degrees of freedom, scaled to variance 1",
    "unequal": "normal noise; arms have 4, 2 and 1 times the baseline's standard deviation",
    "skewed": "exponential noise in every arm; paired differences are still symmetric",
    "lopsided": "exponential noise in the arms, normal in the baseline: differences are skewed",
    "rare": "in the arms one run in ten is higher than the others by 10, with mean 0; normal in the baseline",
}


class Rate(NamedTuple):
    """A share of simulated studies with its 95% Clopper-Pearson interval and its nominal value."""

    what: str
    noise: str
    seeds: str  # "4", or the numbers of seeds at each look: "4, 8, 16"
    contrasts: int
    hits: int
    trials: int
    rate: float
    low: float
    high: float
    promised: float


class TrialsRate(NamedTuple):
    """The share of pseudo-studies of identical trials with a false verdict of better or worse, and its interval."""

    metric: str  # "" for studies that judge all metrics
    seeds: int
    contrasts: int
    trials: int  # number of trials to draw from
    draws: int  # number of pseudo-studies
    effective: float  # number of independent studies that would give the same interval
    rate: float
    low: float
    high: float


def clopper_pearson(hits: float, trials: float, level: float = 1 - ALPHA) -> Interval:
    """Return the exact interval of a binomial share; counts may be fractional, for an effective number of trials."""
    if not 0 <= hits <= trials or trials <= 0:
        raise ValueError(f"hits={hits}, trials={trials}: must be 0 <= hits <= trials, with trials positive")
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.isf(tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return Interval(low, high)


# ---- simulated studies -----------------------------------------------------------------------------------------------


def simulated(
    rng: np.random.Generator, noise: str, studies: int, contrasts: int, seeds: int, truth: Sequence[float] = (0.0,)
) -> Values:
    """Draw paired differences (S, m, n) of arms that share a baseline, with true means `truth`, repeated as needed.

    The first three contrasts are three arms in one metric, the next three the same arms in a correlated metric.
    """
    if noise not in NOISE:
        raise ValueError(f"noise={noise!r}: must be one of {', '.join(NOISE)}")
    if seeds < 2 or contrasts < 1:
        raise ValueError(f"seeds={seeds}, contrasts={contrasts}: must be at least two seeds and one contrast")
    arms, metrics = min(contrasts, ARMS), -(-contrasts // ARMS)
    share = math.sqrt(SHARED_BY_METRICS) if metrics > 1 else 0.0
    sides = []
    for shape, baseline in (((1, seeds), True), ((arms, seeds), False)):
        common = _noise(rng, noise, (studies, 1, *shape), baseline)
        own = _noise(rng, noise, (studies, metrics, *shape), baseline)
        sides.append(share * common + math.sqrt(1 - share**2) * own)
    base, arm = sides
    if noise == "unequal":
        arm = arm * np.resize(UNEQUAL, arms)[:, None]
    delta = (arm - base).reshape(studies, metrics * arms, seeds)[:, :contrasts]
    return np.asarray(delta + np.resize(truth, contrasts)[:, None])


def _noise(rng: np.random.Generator, noise: str, shape: tuple[int, ...], baseline: bool) -> Values:
    """Draw noise with mean 0 and, except for "rare", variance 1."""
    if noise == "heavy":
        return np.asarray(rng.standard_t(3, shape) / math.sqrt(3))
    if noise == "skewed" or (noise == "lopsided" and not baseline):
        return np.asarray(rng.exponential(1, shape) - 1)
    if noise == "rare" and not baseline:
        return rng.normal(0, 0.3, shape) + 10 * ((rng.random(shape) < 0.1) - 0.1)
    return rng.normal(0, 1, shape)


def false_claims(low: Values, high: Values, truth: Sequence[float], margin: float) -> NDArray[np.bool_]:
    """Return which verdicts on intervals (..., m) say something false of these true means; lower is better.

    A verdict of better or worse within the margin makes both claims.
    """
    words, true = decide(low, high, margin, "lower"), np.resize(truth, low.shape[-1])
    return np.asarray(
        ((words == "better") & (true >= 0))
        | ((words == "worse") & (true <= 0))
        | ((words == "identical") & (true != 0))
        | (within(low, high, margin) & (np.abs(true) >= margin))
    )


def false_verdicts(
    noise: str,
    looks: Sequence[int],
    contrasts: int,
    *,
    studies: int,
    truth: Sequence[float] = (0.0,),
    last: int | None = None,
    what: str = "false verdict, equal arms",
    draw: int = 0,
) -> Rate:
    """Return the share of studies that say anything false at any look, which are at these numbers of seeds.

    `last` is the number of seeds at which the study was to be decided, by default that of the last look. Nominal: 5%.
    """
    delta = simulated(np.random.default_rng(draw), noise, studies, contrasts, max(looks), truth)
    false = np.zeros(studies, dtype=bool)
    for error, n in zip(_errors(looks, last, contrasts), looks, strict=True):
        false |= false_claims(*limits(delta[..., :n], error), truth, MARGIN).any(-1)
    return _rate(what, noise, looks, contrasts, int(false.sum()), studies, ALPHA)


def coverage(
    noise: str,
    seeds: int,
    contrasts: int,
    *,
    studies: int,
    truth: Sequence[float] = (0.0,),
    decided: bool = False,
    draw: int = 0,
) -> Rate:
    """Return the share of studies whose intervals, or those of decided contrasts, all hold the truth. Nominal: 95%.

    A study that decides nothing counts as one whose decided intervals hold.
    """
    delta = simulated(np.random.default_rng(draw), noise, studies, contrasts, seeds, truth)
    low, high = limits(delta, _errors([seeds], None, contrasts)[0])
    true = np.resize(truth, contrasts)
    missed = (true < low) | (high < true)
    if decided:
        missed &= decide(low, high, MARGIN, "lower") != "undecided"
    what = "all decided intervals hold" if decided else "all intervals hold"
    held = studies - int(missed.any(-1).sum())
    return _rate(what, noise, [seeds], contrasts, held, studies, 1 - ALPHA)


def power(noise: str, seeds: int, contrasts: int, *, studies: int, times: float = 1.0, draw: int = 0) -> Rate:
    """Return the share of studies that find one real effect, `times` that of 80% power by `paired`. Nominal, at 1: 80%.

    The effect is in the first contrast; its unit is the standard deviation of that contrast's differences.
    """
    (error,) = _errors([seeds], None, contrasts)
    sd = math.hypot(1, UNEQUAL[0]) if noise == "unequal" else PAIRED_SD
    size = times * detectable_in_sd(seeds, error) * sd
    truth = [size] + [0.0] * (contrasts - 1)
    delta = simulated(np.random.default_rng(draw), noise, studies, contrasts, seeds, truth)
    words = decide(*limits(delta[:, 0], error), math.nan, "lower")
    what = f"effect found, {times:g} x that of 80% power"
    return _rate(what, noise, [seeds], contrasts, int((words == "worse").sum()), studies, POWER)


def judged_alike(noise: str, studies: int, *, draw: int = 0) -> bool:
    """Return whether simulated studies get the limits and words that `verdicts.judge` finds in tables of results."""
    seeds, contrasts = range(4), [Contrast(f"arm{i % ARMS}", "base", f"metric{i // ARMS}", MARGIN) for i in range(6)]
    delta = simulated(np.random.default_rng(draw), noise, studies, len(contrasts), len(seeds), (0.0, MARGIN, 5.0))
    (error,) = _errors([len(seeds)], None, len(contrasts))
    limits_of = np.stack(limits(delta, error), -1)  # (S, m, 2)
    words = decide(limits_of[..., 0], limits_of[..., 1], MARGIN, "lower")
    base, alike = np.linspace(5, 6, len(seeds)), True
    for study in range(studies):
        rows = {("base", seed): {contrast.metric: base[seed] for contrast in contrasts} for seed in seeds}
        for contrast, of_contrast in zip(contrasts, delta[study], strict=True):
            for seed in seeds:
                rows.setdefault((contrast.arm, seed), {})[contrast.metric] = base[seed] + of_contrast[seed]
        results = pd.DataFrame([{"arm": a, "seed": s, "status": "finished"} | row for (a, s), row in rows.items()])
        directions = {contrast.metric: "lower" for contrast in contrasts}
        effects = judge(results, contrasts, seeds=seeds, directions=directions, error=error)
        alike &= [effect.word for effect in effects] == list(words[study])
        alike &= np.allclose([(effect.low, effect.high) for effect in effects], limits_of[study], rtol=1e-9)
    return alike


def _errors(looks: Sequence[int], last: int | None, contrasts: int) -> list[float]:
    """Return the error of each interval at each look, where every look adds seeds to those before."""
    sets = [frozenset(range(n)) for n in looks]
    return [error_of_interval(sets[: k + 1], last or looks[-1], contrasts) for k in range(len(sets))]


def _rate(what: str, noise: str, looks: Sequence[int], contrasts: int, hits: int, trials: int, promised: float) -> Rate:
    seeds = ", ".join(map(str, looks)) if len(looks) < 6 else f"{looks[0]}, {looks[1]}, ... {looks[-1]}"
    return Rate(what, noise, seeds, contrasts, hits, trials, hits / trials, *clopper_pearson(hits, trials), promised)


# ---- real trials -----------------------------------------------------------------------------------------------------


def from_trials(
    results: pd.DataFrame, metrics: Sequence[str], n_seeds: int, n_arms: int, draws: int, *, seed: int = 0
) -> TrialsRate:
    """Measure how often identical trials get a false verdict, in pseudo-studies drawn from them without replacement.

    A pseudo-study compares n_arms - 1 arms with a baseline in every one of `metrics`, and is false if any of these
    contrasts is called better or worse. `results` are the trials of an A/A study, whose arms differ only in their
    random seed; they are exchangeable, so any of them may take the role of any arm and seed. They share no initial
    weights, so this tests the shape of the noise, not the effect of pairing.

    N trials, k = n_arms x n_seeds per pseudo-study. Pseudo-studies share trials, so their rate is a U-statistic rather
    than a binomial share. Its variance is estimated by the infinitesimal jackknife (the covariance of the rate with
    each trial's presence; Wager and Athey 2018, for subsamples), minus the bias of a finite number of draws, plus the
    variance of the draws. The interval is Clopper-Pearson's for the number of independent studies with that variance,
    which is at least the N // k disjoint ones (Hoeffding 1948) and at most `draws`.
    """
    values = _identical(results, metrics)  # (N, metrics)
    trials, size = len(values), n_arms * n_seeds
    if n_seeds < 2 or n_arms < 2 or draws < 1:
        raise ValueError(f"n_seeds={n_seeds}, n_arms={n_arms}, draws={draws}: at least two seeds, two arms, one draw")
    if trials < 2 * size:
        raise ValueError(f"results: {trials} trials; pseudo-studies of {size} need at least {2 * size}")
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.choice(trials, size, replace=False) for _ in range(draws)])  # (draws, k)
    arms = np.moveaxis(values[chosen].reshape(draws, n_arms, n_seeds, -1), -1, 1)  # (draws, metrics, arms, n)
    delta = (arms[:, :, 1:] - arms[:, :, :1]).reshape(draws, -1, n_seeds)
    contrasts = delta.shape[1]
    words = decide(*limits(delta, _errors([n_seeds], None, contrasts)[0]), math.nan, "lower")
    hits = np.isin(words, ("better", "worse")).any(-1).astype(float)
    present = np.zeros((draws, trials))
    np.put_along_axis(present, chosen, 1.0, axis=1)
    rate = float(hits.mean())
    count = _effective(hits, present, size)
    name = metrics[0] if len(metrics) == 1 else ""
    interval = clopper_pearson(rate * count, count)
    return TrialsRate(name, n_seeds, contrasts, trials, draws, count, rate, *interval)


def _effective(hits: Values, present: Values, size: int) -> float:
    """Return the number of independent studies whose share of hits has the same variance as that of these draws."""
    draws, n = present.shape
    fewest, spread = float(n // size), float(hits.var())
    if spread == 0:
        return fewest
    along = (present - size / n).T @ (hits - hits.mean()) / draws  # (N,) covariance of presence and hit
    by_chance = n * (size / n) * (1 - size / n) * spread / draws
    shared = (n - 1) / n * (n / (n - size)) ** 2 * (float((along**2).sum()) - by_chance)
    return float(np.clip(spread / (max(shared, 0.0) + spread / draws), fewest, draws))


def _identical(results: pd.DataFrame, metrics: Sequence[str]) -> Values:
    """Return the metrics of the finished trials (N, metrics). Raises ValueError for trials that agree in all."""
    if missing := [metric for metric in metrics if metric not in results]:
        raise ValueError(f"results: no column {missing[0]!r}; columns are {', '.join(map(str, results.columns))}")
    done = results[results["status"] == "finished"] if "status" in results else results
    measured = [name for name in map(str, done.columns) if name in metrics or ("/" in name and name[:5] != "perf/")]
    twins = done[done.duplicated(measured, keep=False)]
    if len(twins):
        names = (f"{arm} seed {seed}" for arm, seed in zip(twins["arm"], twins["seed"], strict=True))
        raise ValueError(
            f"results: {', '.join(names)} are the same run; the trials of an A/A study differ in their seed"
        )
    values = done[list(metrics)].to_numpy(dtype=float)
    for metric, column in zip(metrics, values.T, strict=True):
        if not np.isfinite(column).all():
            raise ValueError(f"results: {metric} is not finite in {int((~np.isfinite(column)).sum())} trials")
    return values
