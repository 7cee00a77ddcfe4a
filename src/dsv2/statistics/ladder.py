"""Loss over training compute along a ladder of scales: fitted curves, how sure they are, and the next rung foretold.

R rungs, B resamples. The form is L(C) = E + A C^-alpha with E >= 0, A > 0 and 0.001 <= alpha <= 2, C in FLOPs; two
rungs cannot hold three numbers, so they get L(C) = A C^-alpha. Fits are least squares of log L over all runs.

Intervals are a bootstrap over seeds: at each rung the seeds are drawn anew, the same for all arms, so that differences
between arms stay paired; rungs are drawn independently, for a seed at two scales shares a number and no weights. With
n seeds, means of resamples vary too little by sqrt((n - 1) / n), and percentiles know nothing of how few the seeds are:
what a resample moves a rung's mean is stretched by sqrt(n / (n - 1)) and by t / z at sum(n - 1) degrees of freedom.
`tests/analysis/test_ladder.py` holds the coverage against 95%. They know the noise of seeds alone, not that the form
may be wrong beyond the rungs: a held-out rung tests that.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, special

from dsv2.statistics.paired import ALPHA, Interval, Values
from dsv2.statistics.trends import climb

SATURATING, POWER_LAW = "E + A C^-alpha", "A C^-alpha"
STEEPEST = 2.0
EXPONENTS = np.geomspace(1e-3, STEEPEST, 120)


class Fit(NamedTuple):
    """One arm's curve. Intervals are NaN where a rung has one seed."""

    arm: str
    form: str
    rungs: int
    e: float
    a: float
    alpha: float
    e_interval: Interval
    a_interval: Interval
    alpha_interval: Interval
    note: str  # which bound the fit lies on, or why there is no interval; may be ""

    def at(self, flops: float | Values) -> Values:
        """The fitted loss after so many FLOPs."""
        return np.asarray(self.e + self.a * np.asarray(flops, dtype=float) ** -self.alpha)


class Ladder(NamedTuple):
    """All arms' curves, and what belongs to them together: resample b of one arm has the seeds of b of another."""

    scales: tuple[str, ...]
    fits: dict[str, Fit]
    draws: dict[str, Values]  # arm to (B, 3) of E, A, alpha; B = 0 without intervals
    residuals: dict[str, Values]  # arm to the stretched log residuals of all runs, in one order of runs


class Prediction(NamedTuple):
    """What a rung's mean over `seeds` runs should be, and what it was; of an arm, or of its difference to `minus`."""

    arm: str
    minus: str  # "" for the loss itself
    scale: str
    flops: float
    seeds: int
    predicted: float
    low: float
    high: float
    observed: float  # NaN where the rung has not been run
    inside: bool | None  # None without an observation or an interval


class _Points(NamedTuple):
    flops: Values  # (R,)
    logs: list[Values]  # R arrays of log loss, one a seed


# ---- fitting ---------------------------------------------------------------------------------------------------------


def fit_ladder(
    runs: pd.DataFrame,
    *,
    arms: Sequence[str],
    baseline: str,
    loss: str = "loss",
    resamples: int = 1000,
    seed: int = 0,
) -> Ladder:
    """The curves of all arms; `runs` as in `trends`. Refuses one rung, rungs of equal compute and a loss that rises."""
    scales = climb(runs, arms=arms, baseline=baseline, loss=loss)
    if len(scales) < 2:
        raise ValueError(f"runs: the one scale {', '.join(scales)}; a curve over compute takes two at least")
    points = {arm: _points(runs[runs["arm"] == arm], arm, scales, loss) for arm in arms}
    counts = [each.size for each in points[baseline].logs]  # seeds at each rung, the same for all arms
    rng = np.random.default_rng(seed)
    picks = [rng.integers(0, n, (resamples if min(counts) > 1 else 0, n)) for n in counts]
    stretch = _stretch(counts)
    fits, draws, residuals = {}, {}, {}
    for arm, (flops, logs) in points.items():
        means = np.array([each.mean() for each in logs])
        away = [k * (each - mean) for k, each, mean in zip(stretch, logs, means, strict=True)]
        moved = means + np.stack([each[pick].mean(1) for each, pick in zip(away, picks, strict=True)], axis=1)  # (B, R)
        fits[arm], draws[arm] = _fit(arm, flops, means, np.array(counts, dtype=float), moved)
        residuals[arm] = np.concatenate(away)
    return Ladder(tuple(scales), fits, draws, residuals)


def _points(mine: pd.DataFrame, arm: str, scales: Sequence[str], loss: str) -> _Points:
    flops, logs = [], []
    for scale in scales:
        rung = mine[mine["scale"] == scale].sort_values("seed")
        if np.ptp(rung["flops"]) > 1e-6 * rung["flops"].max():
            raise ValueError(f"runs: flops of arm {arm!r} differ between the seeds of {scale!r}; one number a rung")
        flops.append(float(rung["flops"].iloc[0]))
        logs.append(np.log(rung[loss].to_numpy(dtype=float)))
    for i in range(1, len(flops)):
        if flops[i] <= flops[i - 1] * 1.01:
            where = f"{scales[i]!r} ({flops[i]:.3g}) has not over 1% more than {scales[i - 1]!r} ({flops[i - 1]:.3g})"
            raise ValueError(f"runs: flops of arm {arm!r} must grow with the rungs; {where}")
    return _Points(np.array(flops), logs)


def _stretch(counts: Sequence[int]) -> list[float]:
    """By how much each rung's resampled means are moved further, so that percentiles become t intervals."""
    if min(counts) < 2:
        return [math.nan if n < 2 else 1.0 for n in counts]
    freedom = sum(n - 1 for n in counts)
    tail = special.stdtrit(freedom, 1 - ALPHA / 2) / special.ndtri(1 - ALPHA / 2)
    return [math.sqrt(n / (n - 1)) * tail for n in counts]


def _fit(arm: str, flops: Values, means: Values, weights: Values, moved: Values) -> tuple[Fit, Values]:
    """The curve through `means` (R,) of log loss, and (B, 3) of E, A, alpha for the resampled means (B, R)."""
    centre = float(np.log(flops).mean())  # compute relative to the middle rung keeps A and alpha apart
    x = np.log(flops) - centre
    if len(x) == 2:
        form, best, found = POWER_LAW, _power_law(x, means[None])[0], _power_law(x, moved)
    else:
        form, best, found = SATURATING, _saturating(x, means, weights), _profile(x, np.exp(moved), weights)
    e, a, alpha = best
    if a <= 0 or alpha <= 0:
        ends = f"{math.exp(means[0]):.4g} after {flops[0]:.3g} FLOPs, {math.exp(means[-1]):.4g} after {flops[-1]:.3g}"
        raise ValueError(f"runs: the loss of arm {arm!r} does not fall with compute ({ends}); nothing to fit")
    notes = ["two rungs: a power law without E"] if form == POWER_LAW else []
    notes += ["E at its bound 0"] if form == SATURATING and e <= 1e-4 * math.exp(means[0]) else []
    notes += [f"alpha at its bound {STEEPEST:g}"] if form == SATURATING and alpha >= STEEPEST * (1 - 1e-6) else []
    notes += [] if len(moved) else ["no interval: a rung has one seed, or no resamples were asked for"]
    found = np.stack([found[:, 0], found[:, 1] * np.exp(found[:, 2] * centre), found[:, 2]], axis=1)
    of_e, of_a, of_alpha = (_interval(found[:, i]) for i in range(3))
    fit = Fit(arm, form, len(x), e, a * math.exp(alpha * centre), alpha, of_e, of_a, of_alpha, "; ".join(notes))
    return fit, found


def _saturating(x: Values, y: Values, weights: Values) -> tuple[float, float, float]:
    """E, A, alpha of least squares of log loss, from several starts; x is log compute, y mean log loss, both (R,)."""
    root, lowest = np.sqrt(weights), math.exp(y.min())

    def off(t: Values) -> Values:
        return np.asarray(root * (np.log(t[0] + np.exp(t[1] - t[2] * x)) - y))

    def slope(t: Values) -> Values:
        power = np.exp(t[1] - t[2] * x)
        return np.asarray(root[:, None] * np.stack([np.ones_like(x), power, -x * power], 1) / (t[0] + power)[:, None])

    e, a, alpha = _profile(x, np.exp(y)[None], weights)[0]
    if a * np.ptp(np.exp(-alpha * x)) <= 1e-6 * lowest:
        return e, 0.0, alpha  # flat or rising: the solver would creep towards this forever
    starts = [(e, math.log(max(a, 1e-9 * lowest)), alpha)]
    starts += [(share * lowest, math.log((1 - share) * lowest), steep) for share in (0.1, 0.7) for steep in (0.1, 0.5)]
    lower, upper = np.array([0.0, -np.inf, EXPONENTS[0]]), np.array([lowest, np.inf, STEEPEST])
    inside = [np.clip(start, lower + 1e-9 * lowest, upper - 1e-9 * lowest) for start in starts]
    solved = [optimize.least_squares(off, start, slope, bounds=(lower, upper), x_scale="jac") for start in inside]
    best = min(solved, key=lambda one: one.cost).x
    return float(best[0]), math.exp(best[1]), float(best[2])


def _power_law(x: Values, y: Values) -> Values:
    """(B, 3) of 0, A, alpha through two rungs; y (B, 2) is log loss."""
    alpha = (y[:, 0] - y[:, 1]) / (x[1] - x[0])
    return np.stack([np.zeros(len(y)), np.exp(y[:, 0] + alpha * x[0]), alpha], axis=1)


def _profile(x: Values, losses: Values, weights: Values) -> Values:
    """(B, 3) of E, A, alpha by a scan over alpha, where E and A are linear: many fits at once, none in a wrong valley.

    Least squares of relative residuals, which are those of log loss up to their square. losses (B, R).
    """
    each = np.arange(len(losses))
    alpha = np.broadcast_to(EXPONENTS, (len(losses), len(EXPONENTS)))
    for _ in range(3):  # each time between the best one's neighbours
        near = _linear(x, losses, weights, alpha)[2].argmin(1)
        low, high = alpha[each, np.maximum(near - 1, 0)], alpha[each, np.minimum(near + 1, alpha.shape[1] - 1)]
        alpha = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 21)
    e, a, cost = _linear(x, losses, weights, alpha)
    best = cost.argmin(1)
    return np.stack([e[each, best], a[each, best], alpha[each, best]], axis=1)


def _linear(x: Values, losses: Values, weights: Values, alpha: Values) -> tuple[Values, Values, Values]:
    """E >= 0 and A >= 0 at the given alpha (B, G), and their cost, each (B, G)."""
    power = np.exp(-alpha[..., None] * x)  # (B, G, R)
    once, twice = (weights / losses)[:, None], (weights / losses**2)[:, None]  # (B, 1, R)
    s00, s01, s11 = twice.sum(-1), (twice * power).sum(-1), (twice * power**2).sum(-1)
    r0, r1 = once.sum(-1), (once * power).sum(-1)
    determinant = np.maximum(s00 * s11 - s01**2, 1e-14 * s00 * s11)
    e, a = (s11 * r0 - s01 * r1) / determinant, (s00 * r1 - s01 * r0) / determinant
    e, a = np.where(e < 0, 0.0, e), np.where(e < 0, r1 / s11, a)
    e, a = np.where(a < 0, r0 / s00, e), np.where(a < 0, 0.0, a)
    cost = (weights * (1 - (e[..., None] + a[..., None] * power) / losses[:, None]) ** 2).sum(-1)
    return e, a, cost


def _interval(draws: Values) -> Interval:
    if not len(draws):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(float(low), float(high))


# ---- predicting ------------------------------------------------------------------------------------------------------


def band(ladder: Ladder, arm: str, flops: Values, minus: str | None = None) -> tuple[Values, Values]:
    """95% interval of the curve at each of `flops`, or of its difference to the curve of `minus`."""
    drawn = _curves(ladder, arm, flops) - (_curves(ladder, minus, flops) if minus else 0.0)
    if not len(drawn):
        return np.full(len(flops), math.nan), np.full(len(flops), math.nan)
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
    return low, high


def _curves(ladder: Ladder, arm: str, flops: Values) -> Values:
    e, a, alpha = (ladder.draws[arm][:, i, None] for i in range(3))
    return np.asarray(e + a * np.asarray(flops, dtype=float) ** -alpha)  # (B, ...)


def predict(
    ladder: Ladder,
    flops: Mapping[str, float],
    *,
    scale: str,
    seeds: int,
    baseline: str | None = None,
) -> list[Prediction]:
    """The mean loss of `seeds` runs after each arm's `flops`, with 95% prediction intervals; then, with a baseline,
    every arm's difference to it. The noise of the new runs is taken to be that of all rungs, pooled, in log loss."""
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: at least one")
    rng = np.random.default_rng(1)
    amount, pool = len(next(iter(ladder.draws.values()))), len(next(iter(ladder.residuals.values())))
    picks = rng.integers(0, pool, (amount, seeds))  # the same runs for all arms: what seeds share stays shared
    found, drawn = {}, {}
    for arm, compute in flops.items():
        noise = np.exp(ladder.residuals[arm][picks].mean(1)) if amount else np.empty(0)
        drawn[arm] = _curves(ladder, arm, np.array([compute]))[:, 0] * noise
        found[arm] = float(ladder.fits[arm].at(compute))
    wanted = [(arm, "", found[arm], drawn[arm]) for arm in flops]
    if baseline is not None:
        others = [arm for arm in flops if arm != baseline]
        wanted += [(arm, baseline, found[arm] - found[baseline], drawn[arm] - drawn[baseline]) for arm in others]
    return [
        Prediction(arm, minus, scale, flops[arm], seeds, value, *_interval(draws), observed=math.nan, inside=None)
        for arm, minus, value, draws in wanted
    ]


def held_out(
    runs: pd.DataFrame,
    *,
    scale: str,
    arms: Sequence[str],
    baseline: str,
    loss: str = "loss",
    resamples: int = 1000,
    seed: int = 0,
) -> list[Prediction]:
    """Fit the rungs below `scale`, predict it, and say whether what was observed there lies inside."""
    scales = climb(runs, arms=arms, baseline=baseline, loss=loss)
    if scale not in scales[2:]:
        raise ValueError(f"scale={scale!r}: a rung with two below it; there are {', '.join(scales)}")
    below = runs[runs["scale"].isin(scales[: scales.index(scale)])]
    ladder = fit_ladder(below, arms=arms, baseline=baseline, loss=loss, resamples=resamples, seed=seed)
    rung = runs[(runs["scale"] == scale) & runs["arm"].isin(list(arms))].groupby("arm")
    compute, seeds = rung["flops"].mean(), int(rung["seed"].nunique().min())
    observed = np.exp(rung[loss].apply(lambda column: np.log(column).mean()))  # as the fit averages
    result = []
    for one in predict(ladder, {arm: compute[arm] for arm in arms}, scale=scale, seeds=seeds, baseline=baseline):
        was = float(observed[one.arm] - (observed[one.minus] if one.minus else 0.0))
        inside = None if math.isnan(one.low) else bool(one.low <= was <= one.high)
        result.append(one._replace(observed=was, inside=inside))
    return result
