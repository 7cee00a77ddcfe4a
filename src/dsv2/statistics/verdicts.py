"""Effects of a study's arms and verdicts on them.

n seeds. An effect is the arm's value minus the baseline's, seed by seed: arms of one seed share initial weights and
data order, which halves the noise. `RULE` states how verdicts are reached; a study with a missing trial has none.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dsv2.config import ConfigError
from dsv2.statistics.paired import (
    ALPHA,
    MOST_SEEDS,
    Values,
    detectable_in_sd,
    equivalence_p,
    holm,
    paired_differences,
    paired_p,
    seeds_for_equivalence,
    seeds_needed,
    separation,
    t_interval,
)

RULE = (
    "Arms are compared with the baseline seed by seed. A metric is called better or worse when the paired t-test "
    "gives p < 0.05 after Holm's correction over the arms compared in that metric, and equivalent when both one-sided "
    "t-tests (TOST) reject the stated margin under the same correction; anything else is undecided. Intervals are 95% "
    "t intervals of the mean difference, not widened for the number of arms. At most about 5% of studies of equal arms "
    "get a false verdict, whether noise is normal, heavy-tailed or skewed. If an arm fails in one run of ten and does "
    "well in the others, verdicts on its mean are wrong far more often, so look at the individual seeds."
)
UNSEEN = "no visible cost or gain"
MOST_DECIMALS = 8  # smaller differences are written with an exponent


class Verdict(NamedTuple):
    """A verdict. `word` is one of better, worse, equivalent, identical, undecided, none; `text` adds the details."""

    word: str
    numbers: str  # difference, interval and p; "" if there are none
    note: str  # qualifications; may be ""

    @property
    def text(self) -> str:
        text = f"{self.word}: {self.numbers}" if self.numbers else self.word
        return f"{text}; {self.note}" if self.note else text

    def __str__(self) -> str:
        return self.text


class Effect(NamedTuple):
    """One arm against the baseline in one metric. Without an interval (n = 1) its numbers are NaN."""

    arm: str
    metric: str
    n: int
    mean: float  # arm minus baseline
    sd: float  # of the paired differences
    low: float  # 95% t interval
    high: float
    p: float  # paired t, two-sided
    p_holm: float
    p_equivalence: float  # TOST after Holm; NaN without a margin
    detectable: float  # smallest effect detected with 80% power at the level of Holm's first rejection
    separated: str  # "below" or "above" if all seeds of the arm lie beyond all of the baseline, else ""
    word: str
    note: str
    verdict: str


def difference_text(mean: float, low: float, high: float) -> str:
    """Format a mean with its interval, to two digits of the interval's half width; without one, only the mean."""
    if math.isnan(low):
        return f"{mean:+.2g}"
    digits = decimals(low, high)
    if digits == MOST_DECIMALS:
        return f"{mean:+.2g} [{low:+.2g}, {high:+.2g}]"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def two_digits(value: float) -> str:
    """Format a number with two significant digits; an empty string for NaN."""
    return "" if math.isnan(value) else f"{value:.2g}"


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


def compare(
    results: pd.DataFrame,
    metric: str,
    *,
    arms: Sequence[str],
    baseline: str,
    seeds: Sequence[int],
    direction: str,
    margin: float | None = None,
) -> list[Effect]:
    """Compare every other arm with the baseline in one metric by `RULE`, in the order of `arms`.

    `results` has one row per trial with columns arm, seed, status and the metric. `direction` is "lower" or "higher",
    whichever is better. Empty if the baseline does not have the metric.
    """
    values = paired_values(results, metric, arms, seeds)
    if baseline not in values:
        return []
    return judge(values, metric, baseline=baseline, direction=direction, margin=margin)


def judge(
    values: Mapping[str, Values],
    metric: str,
    *,
    baseline: str,
    direction: str,
    margin: float | None = None,
) -> list[Effect]:
    """Do the same as `compare` on arrays: arm -> its (n,) values, all in the same order of seeds."""
    if direction not in ("lower", "higher"):
        raise ValueError(f"direction={direction!r}: must be 'lower' or 'higher'")
    if baseline not in values:
        raise ValueError(f"baseline={baseline!r}: must be one of {', '.join(values)}")
    others = [arm for arm in values if arm != baseline]
    deltas = {arm: paired_differences(values[arm], values[baseline]) for arm in others}
    p = [paired_p(delta) for delta in deltas.values()]
    p_same = [math.nan if margin is None else equivalence_p(delta, margin) for delta in deltas.values()]
    effects = []
    for arm, p_raw, p_holm, p_equal in zip(others, p, holm(p), holm(p_same), strict=True):
        delta, n = deltas[arm], deltas[arm].size
        sd = float(delta.std(ddof=1)) if n > 1 else math.nan
        effect = Effect(
            arm=arm,
            metric=metric,
            n=n,
            mean=float(delta.mean()),
            sd=sd,
            low=t_interval(delta).low,
            high=t_interval(delta).high,
            p=p_raw,
            p_holm=p_holm,
            p_equivalence=p_equal,
            detectable=detectable_in_sd(n, ALPHA / len(others)) * sd if n > 1 else math.nan,
            separated=separation(values[arm], values[baseline]),
            word="",
            note="",
            verdict="",
        )
        verdict = decide(effect, direction, margin, family=len(others))
        effects.append(effect._replace(word=verdict.word, note=verdict.note, verdict=verdict.text))
    return effects


def decide(effect: Effect, direction: str, margin: float | None = None, family: int = 1) -> Verdict:
    """Return the verdict on one effect by `RULE`, in a family of that many compared arms."""
    n, mean = effect.n, effect.mean
    if n < 2:
        return Verdict("none", "", f"one seed ({mean:+.2g}) gives no interval and no verdict")
    if mean == 0 and effect.sd == 0:
        return Verdict("identical", "", f"in all {n} seeds")
    if math.isnan(effect.p):
        return Verdict("undecided", "", f"{mean:+.2g} in each of {n} seeds, without any spread")
    size = difference_text(mean, effect.low, effect.high)
    numbers = f"{size}, p = {effect.p_holm:.2g} after Holm"
    significant = effect.p_holm < ALPHA
    notes = ["no seed overlaps the baseline's"] if effect.separated else []
    if margin is not None and effect.p_equivalence < ALPHA:
        small = ["significant, but below the margin"] if significant else []
        return Verdict("equivalent", size, "; ".join([f"within {margin:g}", *small]))
    if significant:
        word = "better" if (mean < 0) == (direction == "lower") else "worse"
        return Verdict(word, numbers, "; ".join(notes))
    if unseen(effect):
        notes.append(UNSEEN)
    return Verdict("undecided", numbers, "; ".join([*notes, _what_would_decide(effect, margin, family)]))


def unseen(effect: Effect) -> bool:
    """Whether a loss shows no sign of an effect: its interval contains 0 and the seeds of the two arms overlap."""
    return effect.metric in ("val/loss", "val/bpb") and effect.low <= 0 <= effect.high and not effect.separated


def _what_would_decide(effect: Effect, margin: float | None, family: int) -> str:
    limit = f"differences below {effect.detectable:.2g} may have been missed with {effect.n} seeds"
    needed = seeds_needed(effect.mean, effect.sd, ALPHA / family)
    more = f"about {needed} seeds would decide" if needed else f"not even {MOST_SEEDS:,} seeds would decide"
    text = f"{limit}; {more} a difference of this size"
    if margin is not None:
        same = seeds_for_equivalence(margin, effect.sd, ALPHA / family)
        enough = f"about {same}" if same else f"over {MOST_SEEDS:,}"
        text += f", {enough} would show equivalence within {margin:g} if the arms are equal"
    return text
