"""Calibration of verdicts: how often equal arms get a false verdict, and how often real effects are detected.

Simulated studies are judged by `verdicts.judge` itself. The unit of noise is an arm's own standard deviation about the
seed's effect, which all arms share; an effect of 1 is one standard deviation of the paired differences, sqrt(2) of
those units. Rates have Clopper-Pearson intervals. `from_trials` does the same with real trials that differ only in
their random seed.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dsv2.statistics.paired import ALPHA, POWER, Interval, Values, detectable_in_sd, t_interval
from dsv2.statistics.verdicts import Effect, judge

SEED_SD = 3.0  # of the effect shared by the arms of one seed; pairing must remove it
PAIRED_SD = math.sqrt(2)  # of a paired difference
MARGIN = 4 * PAIRED_SD  # wide enough that TOST at the margin has its full error rate of 5%
NOISE = {
    "normal": "normal noise",
    "heavy": "Student's t with 3 degrees of freedom, scaled to variance 1",
    "skewed": "exponential noise in every arm; paired differences are still symmetric",
    "lopsided": "exponential noise in the arms, normal in the baseline: differences are skewed",
    "rare": "in the arms one run in ten is higher than the others by 10, with mean 0; normal in the baseline",
}

Judge = Callable[..., list[Effect]]  # with the signature of `verdicts.judge`


class Rate(NamedTuple):
    """A share of simulated studies with its 95% Clopper-Pearson interval and its nominal value."""

    what: str
    noise: str
    seeds: int
    arms: int
    hits: int
    trials: int
    rate: float
    low: float
    high: float
    promised: float


class TrialsRate(NamedTuple):
    """The share of pseudo-studies of identical trials with a false verdict of better or worse, and its interval."""

    metric: str
    seeds: int
    arms: int
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
    rng: np.random.Generator, noise: str, seeds: int, arms: int, effects: Mapping[str, float] | None = None
) -> dict[str, Values]:
    """Draw each arm's (seeds,) values: "base" and arms - 1 others. `effects` are in sd of the paired differences."""
    if noise not in NOISE:
        raise ValueError(f"noise={noise!r}: must be one of {', '.join(NOISE)}")
    if seeds < 2 or arms < 2:
        raise ValueError(f"seeds={seeds}, arms={arms}: must be at least two of each")
    names = ["base", *(f"arm{i}" for i in range(1, arms))]
    if unknown := set(effects or {}) - set(names):
        raise ValueError(f"effects: unknown arm {', '.join(sorted(unknown))}; arms are {', '.join(names)}")
    shared = rng.normal(0, SEED_SD, seeds)
    return {
        name: shared + PAIRED_SD * (effects or {}).get(name, 0.0) + _noise(rng, noise, seeds, name == "base")
        for name in names
    }


def _noise(rng: np.random.Generator, noise: str, seeds: int, baseline: bool) -> Values:
    """Draw noise (seeds,) with mean 0 and, except for "rare", variance 1."""
    if noise == "heavy":
        return np.asarray(rng.standard_t(3, seeds) / math.sqrt(3))
    if noise == "skewed" or (noise == "lopsided" and not baseline):
        return np.asarray(rng.exponential(1, seeds) - 1)
    if noise == "rare" and not baseline:
        return rng.normal(0, 0.3, seeds) + 10 * ((rng.random(seeds) < 0.1) - 0.1)
    return rng.normal(0, 1, seeds)


def false_positives(noise: str, seeds: int, arms: int, *, studies: int, draw: int = 0, judged: Judge = judge) -> Rate:
    """Return the share of studies of equal arms in which any arm is called better or worse. Nominal: at most 5%."""
    hits = sum(
        any(effect.word in ("better", "worse") for effect in effects)
        for effects in _studies(noise, seeds, arms, studies, draw, judged)
    )
    return _rate("false better or worse", noise, seeds, arms, hits, studies, ALPHA)


def false_equivalence(noise: str, seeds: int, arms: int, *, studies: int, draw: int = 0, judged: Judge = judge) -> Rate:
    """Return the share of studies in which an arm exactly at the margin is called equivalent. Nominal: at most 5%."""
    at_margin = {f"arm{i}": MARGIN / PAIRED_SD for i in range(1, arms)}
    hits = sum(
        any(effect.word == "equivalent" for effect in effects)
        for effects in _studies(noise, seeds, arms, studies, draw, judged, at_margin, MARGIN)
    )
    return _rate("false equivalence", noise, seeds, arms, hits, studies, ALPHA)


def power(
    noise: str,
    seeds: int,
    arms: int,
    *,
    studies: int,
    times: float = 1.0,
    draw: int = 0,
    judged: Judge = judge,
) -> Rate:
    """Return the share of studies that detect one real effect, `times` the detectable one. Nominal, at 1: 80%."""
    size = times * detectable_in_sd(seeds, ALPHA / (arms - 1))
    hits = sum(
        effects[0].word == "worse"  # arm1 has a higher loss
        for effects in _studies(noise, seeds, arms, studies, draw, judged, {"arm1": size})
    )
    return _rate(f"{times:g} x detectable found", noise, seeds, arms, hits, studies, POWER)


def coverage(noise: str, seeds: int, *, studies: int, draw: int = 0) -> Rate:
    """Return the share of t intervals that contain the true difference. Nominal: 95%."""
    rng, hits = np.random.default_rng(draw), 0
    for _ in range(studies):
        values = simulated(rng, noise, seeds, 2)
        low, high = t_interval(values["arm1"] - values["base"])
        hits += low <= 0 <= high
    return _rate("t interval holds the truth", noise, seeds, 2, hits, studies, 1 - ALPHA)


def _studies(
    noise: str,
    seeds: int,
    arms: int,
    studies: int,
    draw: int,
    judged: Judge,
    effects: Mapping[str, float] | None = None,
    margin: float | None = None,
) -> Iterator[list[Effect]]:
    rng = np.random.default_rng(draw)
    for _ in range(studies):
        values = simulated(rng, noise, seeds, arms, effects)
        yield judged(values, "simulated", baseline="base", direction="lower", margin=margin)


def _rate(what: str, noise: str, seeds: int, arms: int, hits: int, trials: int, promised: float) -> Rate:
    return Rate(what, noise, seeds, arms, hits, trials, hits / trials, *clopper_pearson(hits, trials), promised)


# ---- real trials -----------------------------------------------------------------------------------------------------


def from_trials(
    results: pd.DataFrame, metric: str, n_seeds: int, n_arms: int, draws: int, *, seed: int = 0
) -> TrialsRate:
    """Measure how often identical trials get a false verdict, in pseudo-studies drawn from them without replacement.

    `results` are the trials of an A/A study, whose arms differ only in their random seed; they are exchangeable, so
    any of them may take the role of any arm and seed. They share no initial weights, so this tests the shape of the
    noise, not the effect of pairing.

    N trials, k = n_arms x n_seeds per pseudo-study. Pseudo-studies share trials, so their rate is a U-statistic rather
    than a binomial share. Its variance is estimated by the infinitesimal jackknife (the covariance of the rate with
    each trial's presence; Wager and Athey 2018, for subsamples), minus the bias of a finite number of draws, plus the
    variance of the draws. The interval is Clopper-Pearson's for the number of independent studies with that variance,
    which is at least the N // k disjoint ones (Hoeffding 1948) and at most `draws`.
    """
    values = _identical(results, metric)
    size = n_arms * n_seeds
    if n_seeds < 2 or n_arms < 2 or draws < 1:
        raise ValueError(f"n_seeds={n_seeds}, n_arms={n_arms}, draws={draws}: at least two seeds, two arms, one draw")
    if values.size < 2 * size:
        raise ValueError(f"results: {values.size} trials; pseudo-studies of {size} need at least {2 * size}")
    rng = np.random.default_rng(seed)
    hits, present = np.zeros(draws), np.zeros((draws, values.size))
    for i in range(draws):
        chosen = rng.choice(values.size, size, replace=False)
        arms = {f"arm{j}": row for j, row in enumerate(values[chosen].reshape(n_arms, n_seeds))}
        effects = judge(arms, metric, baseline="arm0", direction="lower")
        hits[i] = any(effect.word in ("better", "worse") for effect in effects)
        present[i, chosen] = 1
    rate = float(hits.mean())
    count = _effective(hits, present, size)
    return TrialsRate(metric, n_seeds, n_arms, values.size, draws, count, rate, *clopper_pearson(rate * count, count))


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


def _identical(results: pd.DataFrame, metric: str) -> Values:
    """Return the metric of the finished trials (N,). Raises ValueError for trials that agree in every metric."""
    if metric not in results:
        raise ValueError(f"results: no column {metric!r}; columns are {', '.join(map(str, results.columns))}")
    done = results[results["status"] == "finished"] if "status" in results else results
    measured = [name for name in map(str, done.columns) if name == metric or ("/" in name and name[:5] != "perf/")]
    twins = done[done.duplicated(measured, keep=False)]
    if len(twins):
        names = ", ".join(f"{arm} seed {seed}" for arm, seed in zip(twins["arm"], twins["seed"], strict=True))
        raise ValueError(f"results: {names} are the same run; the trials of an A/A study differ in their seed")
    values = done[metric].to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"results: {metric} is not finite in {int((~np.isfinite(values)).sum())} trials")
    return values
