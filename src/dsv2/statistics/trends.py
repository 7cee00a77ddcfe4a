"""How differences change as scale grows: every arm against the baseline at each rung of a ladder of scales.

`runs` is a long table: one row per run with columns scale, arm, seed, flops (of the whole training) and loss; in an
optional column status, all must be "finished". Rungs are ordered by the baseline's compute. Seeds may differ between
rungs. All of it is exploratory: verdicts are on the contrasts of one study, in its own report.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dsv2.statistics.verdicts import Effect, IncompleteStudy, difference_text, explore

COLUMNS = ("scale", "arm", "seed", "flops")


class Trend(NamedTuple):
    """One arm over all rungs; `text` says on which side of the baseline it lies."""

    arm: str
    scales: tuple[str, ...]
    effects: tuple[Effect, ...]  # one per rung
    text: str


def trends(runs: pd.DataFrame, *, arms: Sequence[str], baseline: str, loss: str = "loss") -> list[Trend]:
    """Compare every other arm with the baseline at each rung (`verdicts.explore`), and over all rungs."""
    scales = climb(runs, arms=arms, baseline=baseline, loss=loss)
    by_arm: dict[str, list[Effect]] = {arm: [] for arm in arms if arm != baseline}
    for scale in scales:
        rung = _rung(runs, scale)
        for effect in explore(rung, loss, arms=arms, baseline=baseline, seeds=sorted(set(rung["seed"]))):
            by_arm[effect.arm].append(effect)
    return [_trend(arm, scales, effects) for arm, effects in by_arm.items()]


def climb(runs: pd.DataFrame, *, arms: Sequence[str], baseline: str, loss: str = "loss") -> list[str]:
    """Return the scales in the order of the baseline's compute.

    Raises ValueError for missing and duplicate runs and for values that are not positive numbers.
    """
    for column in (*COLUMNS, loss):
        if column not in runs:
            raise ValueError(f"runs: no column {column!r}; columns are {', '.join(map(str, runs.columns))}")
    if baseline not in arms:
        raise ValueError(f"baseline={baseline!r}: must be one of {', '.join(arms)}")
    missing = []
    for scale in dict.fromkeys(runs["scale"]):
        rung = _rung(runs, scale)
        seeds = sorted(set(rung["seed"]))
        status = rung.set_index(["arm", "seed"])["status"]
        if status.index.has_duplicates:
            arm, seed = status.index[status.index.duplicated()][0]
            raise ValueError(f"runs: more than one run for scale={scale!r}, arm={arm!r}, seed={seed}")
        states = {(arm, seed): status.get((arm, seed), "missing") for arm in arms for seed in seeds}
        missing += [
            f"{arm} seed {seed} at {scale} ({state})" for (arm, seed), state in states.items() if state != "finished"
        ]
    if missing:
        raise IncompleteStudy(missing)
    compared = runs[runs["arm"].isin(list(arms))]
    for column in ("flops", loss):
        bad = compared[~(np.isfinite(compared[column]) & (compared[column] > 0))]
        if len(bad):
            row = bad.iloc[0]
            where = f"scale={row['scale']!r}, arm={row['arm']!r}, seed={row['seed']}"
            raise ValueError(f"runs: {column}={row[column]} at {where}; must be a positive number")
    compute = compared[compared["arm"] == baseline].groupby("scale")["flops"].mean().sort_values()
    return [str(scale) for scale in compute.index]


def _rung(runs: pd.DataFrame, scale: str) -> pd.DataFrame:
    rung = runs[runs["scale"] == scale]
    return rung if "status" in rung else rung.assign(status="finished")


def _trend(arm: str, scales: Sequence[str], effects: Sequence[Effect]) -> Trend:
    sides = {float(np.sign(effect.mean)) for effect in effects}
    side = {-1.0: "below", 1.0: "above", 0.0: "equal to"}[sides.pop()] if len(sides) == 1 else ""
    where = "every rung" if len(scales) > 1 else scales[0]
    text = f"{side} the baseline at {where}" if side else "on both sides of the baseline"
    return Trend(arm, tuple(scales), tuple(effects), text)


def trend_rows(by_arm: Sequence[Trend]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the report's table: difference at each rung, then the overall trend."""
    scales = by_arm[0].scales if by_arm else ()
    rows = [
        [trend.arm, *(difference_text(effect.mean, effect.low, effect.high) for effect in trend.effects), trend.text]
        for trend in by_arm
    ]
    return ["arm", *scales, "over scale"], rows
