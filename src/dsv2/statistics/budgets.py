"""Loss against cost: the same curve over training tokens, FLOPs and seconds.

`metrics` is the long table of a study's finished trials (arm, seed, step, tokens, metric, value); `accounting` has one
row per arm with flops_per_token.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NOISE = 2.0
ROUNDING = 1e-6  # relative
AXES = {"per_token": "tokens", "per_flop": "flops", "per_second": "seconds"}  # column of the table -> of the curve


def spent(metrics: pd.DataFrame, accounting: pd.DataFrame, metric: str = "val/loss") -> pd.DataFrame:
    """Return one row per logged value of `metric`: arm, seed, tokens, flops, seconds, value, in the order of tokens.

    FLOPs are those of the accounting, forward and backward. Seconds are of training only, computed from the logged
    perf/tokens_per_s: a rough guide if trials ran in parallel or the machine was busy. Trials that only evaluate have
    no rows.
    """
    flops = accounting.set_index("arm")["flops_per_token"]
    if unknown := sorted(set(metrics["arm"]) - set(flops.index)):
        raise ValueError(f"accounting: no flops_per_token for {', '.join(unknown)}")
    table = metrics[metrics["metric"].isin([metric, "perf/tokens_per_s"])]
    table = table.pivot(index=["arm", "seed", "tokens"], columns="metric", values="value")
    if missing := [name for name in (metric, "perf/tokens_per_s") if name not in table]:
        raise ValueError(f"metrics: {' and '.join(missing)} not logged")
    table = table.reset_index().sort_values(["arm", "seed", "tokens"], kind="stable")
    new = table["tokens"] - table.groupby(["arm", "seed"])["tokens"].shift(fill_value=0)
    seconds = new / table["perf/tokens_per_s"]
    table["seconds"] = seconds.groupby([table["arm"], table["seed"]]).cumsum()
    table["flops"] = table["tokens"] * table["arm"].map(flops).astype(float)
    table = table.rename(columns={metric: "value"}).dropna(subset=["value", "seconds"])
    return (
        table[["arm", "seed", "tokens", "flops", "seconds", "value"]].reset_index(drop=True).rename_axis(columns=None)
    )


def equal_budgets(table: pd.DataFrame) -> dict[str, float]:
    """Return the largest tokens, flops and seconds that every arm and seed of `spent` reached."""
    ends = table.groupby(["arm", "seed"])[list(AXES.values())].max()
    return {name: float(ends[name].min()) for name in AXES.values()}


def telling(metrics: pd.DataFrame, accounting: pd.DataFrame, metric: str = "val/loss") -> list[str]:
    """Return the budgets over which a curve is another than over tokens: "tokens", then "flops" and "seconds" if so.

    FLOPs are if arms differ in them per token. Seconds are if the standard deviation of the arms' means, in seconds per
    token, is `NOISE` times that of the trials of one arm; otherwise they show how busy the machine was.
    """
    table = spent(metrics, accounting, metric)
    last = table[table["tokens"] > 0].groupby(["arm", "seed"])[["tokens", "flops", "seconds"]].max()
    per_token = last[["flops", "seconds"]].div(last["tokens"], axis=0)
    of_arms = per_token.groupby("arm").mean()
    within = float(per_token["seconds"].groupby("arm").var(ddof=1).mean() ** 0.5)  # NaN for one seed
    shown = ["tokens"]
    if of_arms["flops"].max() > of_arms["flops"].min() * (1 + ROUNDING):
        shown.append("flops")
    if float(of_arms["seconds"].std(ddof=1)) > NOISE * within:
        shown.append("seconds")
    return shown


def loss_at_equal(metrics: pd.DataFrame, accounting: pd.DataFrame, metric: str = "val/loss") -> pd.DataFrame:
    """Return `metric` at the largest budget that all trials reached: arm, seed, per_token, per_flop, per_second.

    Values are interpolated linearly in the logarithm of the budget; NaN if the budget ends before a trial's first
    value. `.attrs` holds the budget's tokens, flops and seconds.
    """
    table = spent(metrics, accounting, metric)
    budgets = equal_budgets(table)
    rows = [
        {"arm": arm, "seed": seed}
        | {
            column: _at(budgets[budget], trial[budget].to_numpy(float), trial["value"].to_numpy(float))
            for column, budget in AXES.items()
        }
        for arm in dict.fromkeys(metrics["arm"])
        for seed, trial in table[table["arm"] == arm].groupby("seed")
    ]
    at_equal = pd.DataFrame(rows, columns=["arm", "seed", *AXES])
    at_equal.attrs.update(budgets)
    return at_equal


def _at(budget: float, budgets: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    return float(np.interp(np.log(budget), np.log(budgets), values, left=np.nan))
