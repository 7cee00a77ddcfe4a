"""Effects of a study's arms, and verdicts on the contrasts that it declared.

n seeds. An effect is the arm's value minus its baseline's, seed by seed: arms of one seed share initial weights and
data order, and so their noise. `RULE` states how verdicts are reached; a study with a missing trial has none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dsv2.config import ConfigError
from dsv2.metrics import quantity
from dsv2.statistics.contrast import Contrast
from dsv2.statistics.paired import ALPHA, Values, limits, paired_differences

RULE = (
    "A study names its contrasts before it is run: an arm against its baseline in one metric, with the margin below "
    "which a difference does not matter. Only they get a verdict. Arms are compared seed by seed. The intervals of all "
    "contrasts hold together: each is a t interval whose error is a share of what this look at the study may spend, so "
    "that at most 5% of studies say anything false, however often they are looked at. A contrast is better or worse if "
    "its interval excludes 0, equivalent if the interval lies within the margin, and undecided otherwise: the ends of "
    "the interval then say which differences remain possible. In simulations this holds for normal, heavy-tailed, "
    "unequal and skewed noise (docs/report.md has the table). If an arm fails in one run of ten and does well in the "
    "others, verdicts on its mean are wrong far more often, so look at the individual seeds."
)
MOST_DECIMALS = 8  # smaller differences are written with an exponent


class Effect(NamedTuple):
    """One arm against its baseline in one metric.

    Of a contrast it has a verdict, and the interval is one of those that hold together; otherwise it is exploratory.
    Limits are infinite in a verdict, and NaN in an exploratory effect, if there is no estimate of the noise.
    """

    arm: str
    baseline: str
    metric: str
    n: int
    mean: float  # arm minus baseline
    sd: float  # of the paired differences
    low: float
    high: float
    margin: float = math.nan
    word: str = ""  # better, worse, equivalent, identical, undecided, none; "" if exploratory
    text: str = ""  # the verdict in a phrase


def difference_text(mean: float, low: float, high: float) -> str:
    """Format a mean with its interval, to two digits of the interval's half width; without one, only the mean."""
    if not math.isfinite(high - low):
        return f"{mean:+.2g}"
    digits = decimals(low, high)
    if digits == MOST_DECIMALS:
        return f"{mean:+.2g} [{low:+.2g}, {high:+.2g}]"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def decimals(low: float, high: float) -> int:
    """Return how many decimals show two digits of the interval's half width."""
    half = (high - low) / 2
    return min(max(1 - math.floor(math.log10(half)), 0), MOST_DECIMALS) if half > 0 else 3


class IncompleteStudy(ValueError):
    """A study has missing or unfinished trials, listed in `missing`, and therefore no verdict."""

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__(f"no verdict: {len(missing)} trials have no result: {', '.join(missing)}")
        self.missing = list(missing)


# ---- a study ---------------------------------------------------------------------------------------------------------


def missing_trials(results: pd.DataFrame, arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """List the (arm, seed) pairs without a finished trial. Raises ValueError for duplicate seeds or trials."""
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)}: must be distinct; a repeated seed is not a second trial")
    status: dict[tuple[str, int], str] = {}
    for arm, seed, value in zip(results["arm"], results["seed"], results["status"], strict=True):
        if (arm, seed) in status:
            raise ValueError(f"results: more than one trial for arm={arm!r}, seed={seed}")
        status[arm, seed] = value
    trials = [(arm, seed, status.get((arm, seed), "missing")) for arm in arms for seed in seeds]
    return [f"{arm} seed {seed} ({value})" for arm, seed, value in trials if value != "finished"]


def paired_values(results: pd.DataFrame, metric: str, arms: Sequence[str], seeds: Sequence[int]) -> dict[str, Values]:
    """Return the (n,) values of each arm in the order of `seeds`; dense arms are left out of routing metrics.

    Raises `IncompleteStudy` for missing trials and `ConfigError` for a metric that is missing or not finite.
    """
    if missing := missing_trials(results, arms, seeds):
        raise IncompleteStudy(missing)
    if metric not in results:
        if metric.startswith("routing/"):
            return {}
        raise ConfigError("judged", metric, f"a metric of the results: {', '.join(map(str, results.columns))}")
    table = results.set_index(["arm", "seed"])[metric]
    values = {arm: np.array([table.loc[(arm, seed)] for seed in seeds], dtype=float) for arm in arms}
    values = {a: v for a, v in values.items() if not (metric.startswith("routing/") and np.isnan(v).all())}
    for arm, of_arm in values.items():
        if not np.isfinite(of_arm).all():
            bad = [seed for seed, value in zip(seeds, of_arm, strict=True) if not math.isfinite(value)]
            raise ConfigError(metric, "nan", f"a finite number in every result; it is not for arm {arm!r}, seeds {bad}")
    return values


def explore(
    results: pd.DataFrame, metric: str, *, arms: Sequence[str], baseline: str, seeds: Sequence[int]
) -> list[Effect]:
    """Compare every other arm with the baseline in one metric, with plain 95% intervals and without verdicts.

    `results` has one row per trial with columns arm, seed, status and the metric. Empty if the baseline does not have
    the metric.
    """
    values = paired_values(results, metric, arms, seeds)
    if baseline not in values:
        return []
    effects = []
    for arm in values:
        if arm != baseline:
            delta = paired_differences(values[arm], values[baseline])
            low, high = map(float, limits(delta, ALPHA))
            effects.append(Effect(arm, baseline, metric, delta.size, *_moments(delta), *_finite(low, high)))
    return effects


def judge(
    results: pd.DataFrame,
    contrasts: Sequence[Contrast],
    *,
    seeds: Sequence[int],
    directions: Mapping[str, str],
    error: float,
) -> list[Effect]:
    """Return the verdict on each contrast by `RULE`; `error` is that of each interval (`spending.error_of_interval`).

    `directions` maps metrics to "lower" or "higher", whichever is better.
    """
    effects = []
    for arm, baseline, metric, margin, _ in contrasts:
        values = paired_values(results, metric, [baseline, arm], seeds)
        if missing := [name for name in (baseline, arm) if name not in values]:
            none = f"none: {' and '.join(missing)} measured no {quantity(metric).name}"
            nan = math.nan
            effects.append(Effect(arm, baseline, metric, len(seeds), nan, nan, nan, nan, margin, "none", none))
            continue
        delta = paired_differences(values[arm], values[baseline])
        low, high = map(float, limits(delta, error))
        word = str(decide(low, high, margin, directions[metric]))
        effect = Effect(arm, baseline, metric, delta.size, *_moments(delta), low, high, margin, word)
        effects.append(effect._replace(text=_phrase(effect, directions[metric])))
    return effects


def decide(low: float | Values, high: float | Values, margin: float | Values, direction: str) -> NDArray[np.str_]:
    """Return the word on each interval: better, worse, equivalent, identical or undecided. A NaN margin is none.

    Raises ValueError for limits that are NaN or in the wrong order.
    """
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    if direction not in ("lower", "higher"):
        raise ValueError(f"direction={direction!r}: must be 'lower' or 'higher'")
    if not (low <= high).all():
        raise ValueError(f"low={low}, high={high}: must be numbers, the lower limit first")
    below, above = ("better", "worse") if direction == "lower" else ("worse", "better")
    cases = {
        "identical": (low == 0) & (high == 0),
        below: high < 0,
        above: low > 0,
        "equivalent": within(low, high, margin),
    }
    return np.select(list(cases.values()), list(cases), "undecided")


def within(low: float | Values, high: float | Values, margin: float | Values) -> NDArray[np.bool_]:
    """Return whether each interval lies within the margin on either side of 0; never in a NaN margin."""
    return np.asarray((np.negative(margin) < low) & (np.asarray(high) < margin))


def _phrase(effect: Effect, direction: str) -> str:
    """Return the verdict on a contrast in a phrase."""
    mean, low, high, margin = effect.mean, effect.low, effect.high, effect.margin
    size, given = difference_text(mean, low, high), "" if math.isnan(margin) else f"; margin {margin:g}"
    if effect.word == "identical":
        return f"identical: in all {effect.n} seeds"
    if effect.word == "equivalent":
        return f"equivalent: {size}; within the margin {margin:g}"
    if effect.word != "undecided":
        small = f"; smaller than the margin {margin:g} all the same"
        return f"{effect.word}: {size}{small if within(low, high, margin) else given}"
    if math.isinf(high):
        why = (
            "every seed has the same difference, which gives no estimate of the noise"
            if effect.sd <= 1e-12 * abs(mean)
            else ("this look has too little error to spend for an interval")
        )
        return f"undecided: {size}; {why}{given}"
    cost, gain = (high, -low) if direction == "lower" else (-low, high)
    digits = decimals(low, high)
    ends = f"{cost:.{digits}f} and a gain of up to {gain:.{digits}f}"
    return f"undecided: {size}; a cost of up to {ends} are possible{given}"


def _moments(delta: Values) -> tuple[float, float]:
    return float(delta.mean()), float(delta.std(ddof=1)) if delta.size > 1 else math.nan


def _finite(low: float, high: float) -> tuple[float, float]:
    return (low, high) if math.isfinite(low) else (math.nan, math.nan)
