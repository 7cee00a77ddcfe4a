"""Loss over training compute along a ladder of scales: fitted curves, their intervals, predictions of the next rung.

R rungs, B resamples. The form is L(C) = E + A C^-alpha with E >= 0, A > 0 and 0.001 <= alpha <= 2, C in FLOPs; two
rungs do not determine three parameters, so for them it is L(C) = A C^-alpha. Fits are least squares of log L over all
runs.

Intervals are a bootstrap over seeds. At each rung the seeds are resampled, the same for all arms, so that differences
between arms stay paired; rungs are resampled independently, since a seed at two scales shares no weights. With n seeds,
means of resamples vary too little by sqrt((n - 1) / n), and percentiles do not account for small n: deviations of a
rung's resampled mean are stretched by sqrt(n / (n - 1)) and by t / z at sum(n - 1) degrees of freedom.
`tests/statistics/test_ladder.py` checks the coverage against 95%. Intervals cover seed noise only, not a form that is
wrong beyond the rungs; a held-out rung tests that.
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
    """One arm's curve. Intervals are NaN if a rung has one seed or the fit reached a bound."""

    arm: str
    form: str
    rungs: int
    e: float
    a: float
    alpha: float
    e_interval: Interval
    a_interval: Interval
    alpha_interval: Interval
    note: str  # bounds that the fit reached, or why there is no interval; may be ""

    def at(self, flops: float | Values) -> Values:
        """Return the fitted loss after `flops`."""
        return np.asarray(self.e + self.a * np.asarray(flops, dtype=float) ** -self.alpha)


class Ladder(NamedTuple):
    """The curves of all arms, resampled together: resample b has the same seeds for all arms."""

    scales: tuple[str, ...]
    fits: dict[str, Fit]
    draws: dict[str, Values]  # arm -> (B, 3) of E, A, alpha; B = 0 without intervals
    residuals: dict[str, Values]  # arm -> stretched log residuals of all runs, in the same order for all arms


class Prediction(NamedTuple):
    """Predicted and observed mean of a rung over `seeds` runs, of an arm or of its difference to `minus`."""

    arm: str
    minus: str  # "" for the loss itself
    scale: str
    flops: float
    seeds: int
    predicted: float
    low: float
    high: float
    observed: float  # NaN if the rung has not been run
    inside: bool | None  # None without an observation or an interval


class _Points(NamedTuple):
    flops: Values  # (R,)
    logs: list[Values]  # R arrays (n,) of log loss


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
    """Fit the curves of all arms; `runs` as in `trends`.

    Raises ValueError for a single rung, for rungs of equal compute and for a loss that does not fall.
    """
    scales = climb(runs, arms=arms, baseline=baseline, loss=loss)
    if len(scales) < 2:
        raise ValueError(f"runs: only the scale {', '.join(scales)}; a curve over compute needs at least two")
    points = {arm: _points(runs[runs["arm"] == arm], arm, scales, loss) for arm in arms}
    counts = [losses.size for losses in points[baseline].logs]  # seeds at each rung, the same for all arms
    rng = np.random.default_rng(seed)
    picks = [rng.integers(0, n, (resamples if min(counts) > 1 else 0, n)) for n in counts]
    stretch = _stretch(counts)
    fits, draws, residuals = {}, {}, {}
    for arm, (flops, logs) in points.items():
        means = np.array([losses.mean() for losses in logs])
        away = [k * (losses - mean) for k, losses, mean in zip(stretch, logs, means, strict=True)]
        moved = means + np.stack([rung[pick].mean(1) for rung, pick in zip(away, picks, strict=True)], axis=1)  # (B, R)
        fits[arm], draws[arm] = _fit(arm, flops, means, np.array(counts, dtype=float), moved)
        residuals[arm] = np.concatenate(away)
    return Ladder(tuple(scales), fits, draws, residuals)


def _points(runs: pd.DataFrame, arm: str, scales: Sequence[str], loss: str) -> _Points:
    flops, logs = [], []
    for scale in scales:
        rung = runs[runs["scale"] == scale].sort_values("seed")
        if np.ptp(rung["flops"]) > 1e-6 * rung["flops"].max():
            raise ValueError(
                f"runs: flops of arm {arm!r} differ between the seeds of {scale!r}; they must be equal within a rung"
            )
        flops.append(float(rung["flops"].iloc[0]))
        logs.append(np.log(rung[loss].to_numpy(dtype=float)))
    for i in range(1, len(flops)):
        if flops[i] <= flops[i - 1] * 1.01:
            where = f"{scales[i]!r} ({flops[i]:.3g}) is not over 1% above {scales[i - 1]!r} ({flops[i - 1]:.3g})"
            raise ValueError(f"runs: flops of arm {arm!r} must grow with the rungs; {where}")
    return _Points(np.array(flops), logs)


def _stretch(counts: Sequence[int]) -> list[float]:
    """Return the factor on each rung's resampled deviations that turns percentile intervals into t intervals."""
    if min(counts) < 2:
        return [math.nan if n < 2 else 1.0 for n in counts]
    freedom = sum(n - 1 for n in counts)
    tail = special.stdtrit(freedom, 1 - ALPHA / 2) / special.ndtri(1 - ALPHA / 2)
    return [math.sqrt(n / (n - 1)) * tail for n in counts]


def _fit(arm: str, flops: Values, means: Values, weights: Values, moved: Values) -> tuple[Fit, Values]:
    """Fit a curve to `means` (R,) of log loss, and return (B, 3) of E, A, alpha for the resampled means (B, R)."""
    centre = float(np.log(flops).mean())  # centring decorrelates A and alpha
    x = np.log(flops) - centre
    if len(x) == 2:
        form, best, drawn = POWER_LAW, _power_law(x, means[None])[0], _power_law(x, moved)
    else:
        form, best, drawn = SATURATING, _saturating(x, means, weights), _profile(x, np.exp(moved), weights)
    e, a, alpha = best
    if a <= 0 or alpha <= 0:
        ends = f"{math.exp(means[0]):.4g} after {flops[0]:.3g} FLOPs, {math.exp(means[-1]):.4g} after {flops[-1]:.3g}"
        raise ValueError(f"runs: the loss of arm {arm!r} does not fall with compute ({ends}); nothing to fit")
    notes = ["two rungs: a power law without E"] if form == POWER_LAW else []
    bounds = ["E at its bound 0"] if form == SATURATING and e <= 1e-4 * math.exp(means[0]) else []
    bounds += [f"alpha at its bound {STEEPEST:g}"] if form == SATURATING and alpha >= STEEPEST * (1 - 1e-6) else []
    notes += [f"{bound}, so no interval" for bound in bounds]
    notes += [] if len(moved) else ["no interval: a rung has one seed, or resamples=0"]
    drawn = np.stack([drawn[:, 0], drawn[:, 1] * np.exp(drawn[:, 2] * centre), drawn[:, 2]], axis=1)
    of_e, of_a, of_alpha = (_interval(drawn[: 0 if bounds else None, i]) for i in range(3))
    fit = Fit(arm, form, len(x), e, a * math.exp(alpha * centre), alpha, of_e, of_a, of_alpha, "; ".join(notes))
    return fit, drawn


def _saturating(x: Values, y: Values, weights: Values) -> tuple[float, float, float]:
    """Fit E, A, alpha by least squares of log loss from several starts; x is log compute, y mean log loss, (R,)."""
    root, lowest = np.sqrt(weights), math.exp(y.min())

    def off(t: Values) -> Values:
        return np.asarray(root * (np.log(t[0] + np.exp(t[1] - t[2] * x)) - y))

    def slope(t: Values) -> Values:
        power = np.exp(t[1] - t[2] * x)
        return np.asarray(root[:, None] * np.stack([np.ones_like(x), power, -x * power], 1) / (t[0] + power)[:, None])

    e, a, alpha = _profile(x, np.exp(y)[None], weights)[0]
    if a * np.ptp(np.exp(-alpha * x)) <= 1e-6 * lowest:
        return e, 0.0, alpha  # flat or rising: the solver would approach this without converging
    starts = [(e, math.log(max(a, 1e-9 * lowest)), alpha)]
    starts += [(share * lowest, math.log((1 - share) * lowest), steep) for share in (0.1, 0.7) for steep in (0.1, 0.5)]
    lower, upper = np.array([0.0, -np.inf, EXPONENTS[0]]), np.array([lowest, np.inf, STEEPEST])
    inside = [np.clip(start, lower + 1e-9 * lowest, upper - 1e-9 * lowest) for start in starts]
    solved = [optimize.least_squares(off, start, slope, bounds=(lower, upper), x_scale="jac") for start in inside]
    best = min(solved, key=lambda solution: solution.cost).x
    return float(best[0]), math.exp(best[1]), float(best[2])


def _power_law(x: Values, y: Values) -> Values:
    """Return (B, 3) of 0, A, alpha through two rungs; y (B, 2) is log loss."""
    alpha = (y[:, 0] - y[:, 1]) / (x[1] - x[0])
    return np.stack([np.zeros(len(y)), np.exp(y[:, 0] + alpha * x[0]), alpha], axis=1)


def _profile(x: Values, losses: Values, weights: Values) -> Values:
    """Return (B, 3) of E, A, alpha by a scan over alpha, given which E and A are linear, so no local minima.

    Least squares of relative residuals, which equal those of log loss to first order. losses (B, R).
    """
    resample = np.arange(len(losses))
    alpha = np.broadcast_to(EXPONENTS, (len(losses), len(EXPONENTS)))
    for _ in range(3):  # refine between the neighbours of the best
        near = _linear(x, losses, weights, alpha)[2].argmin(1)
        above = np.minimum(near + 1, alpha.shape[1] - 1)
        low, high = alpha[resample, np.maximum(near - 1, 0)], alpha[resample, above]
        alpha = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 21)
    e, a, cost = _linear(x, losses, weights, alpha)
    best = cost.argmin(1)
    return np.stack([e[resample, best], a[resample, best], alpha[resample, best]], axis=1)


def _linear(x: Values, losses: Values, weights: Values, alpha: Values) -> tuple[Values, Values, Values]:
    """Fit E >= 0 and A >= 0 at the given alpha (B, G) and return them with their cost, each (B, G)."""
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
    """Return the 95% interval of the curve at `flops`, or of its difference to the curve of `minus`."""
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
    """Predict the mean loss of `seeds` runs after each arm's `flops`, with 95% prediction intervals.

    With a baseline, every arm's difference to it is predicted too. The noise of new runs is assumed to be that of all
    rungs, pooled, in log loss.
    """
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: must be at least one")
    rng = np.random.default_rng(1)
    num_draws, pool = len(next(iter(ladder.draws.values()))), len(next(iter(ladder.residuals.values())))
    picks = rng.integers(0, pool, (num_draws, seeds))  # the same runs for all arms, so that seeds stay paired
    predicted, drawn = {}, {}
    for arm, compute in flops.items():
        noise = np.exp(ladder.residuals[arm][picks].mean(1)) if num_draws else np.empty(0)
        drawn[arm] = _curves(ladder, arm, np.array([compute]))[:, 0] * noise
        predicted[arm] = float(ladder.fits[arm].at(compute))
    quantities = [(arm, "", predicted[arm], drawn[arm]) for arm in flops]
    if baseline is not None:
        others = [arm for arm in flops if arm != baseline]
        gaps = {arm: (predicted[arm] - predicted[baseline], drawn[arm] - drawn[baseline]) for arm in others}
        quantities += [(arm, baseline, *gap) for arm, gap in gaps.items()]
    return [
        Prediction(arm, minus, scale, flops[arm], seeds, value, *_interval(draws), observed=math.nan, inside=None)
        for arm, minus, value, draws in quantities
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
    """Fit the rungs below `scale`, predict it, and check whether the observations lie inside the intervals."""
    scales = climb(runs, arms=arms, baseline=baseline, loss=loss)
    if scale not in scales[2:]:
        raise ValueError(f"scale={scale!r}: must be a rung with two below it; rungs are {', '.join(scales)}")
    below = runs[runs["scale"].isin(scales[: scales.index(scale)])]
    ladder = fit_ladder(below, arms=arms, baseline=baseline, loss=loss, resamples=resamples, seed=seed)
    rung = runs[(runs["scale"] == scale) & runs["arm"].isin(list(arms))].groupby("arm")
    compute, seeds = rung["flops"].mean(), int(rung["seed"].nunique().min())
    observed = np.exp(rung[loss].apply(lambda column: np.log(column).mean()))  # as the fit averages
    predictions = predict(ladder, {arm: compute[arm] for arm in arms}, scale=scale, seeds=seeds, baseline=baseline)
    checked = []
    for prediction in predictions:
        arm, minus, low, high = prediction.arm, prediction.minus, prediction.low, prediction.high
        value = float(observed[arm] - (observed[minus] if minus else 0.0))
        inside = None if math.isnan(low) else bool(low <= value <= high)
        checked.append(prediction._replace(observed=value, inside=inside))
    return checked
