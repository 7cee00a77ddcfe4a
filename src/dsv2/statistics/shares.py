"""Shares of answers found, with intervals over what was repeated: seeds, or the questions put to one model."""

import pandas as pd

from dsv2.statistics.paired import t_interval

COLUMNS = ["arm", "length", "mean", "low", "high", "n"]


def found_by_length(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of answers found by arm and length, with its 95% t interval within 0 to 1.

    `table` has one row per question, with columns length and correct, and arm and seed if there are several models. The
    interval is over the n seeds of an arm or, for one, over its n questions; NaN without an estimate of the noise, as
    where all n are equal.
    """
    rows = []
    labelled = table.assign(**{name: "" for name in ("arm", "seed") if name not in table})
    for (arm, length), part in labelled.groupby(["arm", "length"], sort=False):
        of_seeds = part.groupby("seed")["correct"].mean()
        shares = (of_seeds if len(of_seeds) > 1 else part["correct"]).to_numpy(dtype=float)
        low, high = t_interval(shares)
        rows.append((arm, length, shares.mean(), max(low, 0.0), min(high, 1.0), len(shares)))
    return pd.DataFrame(rows, columns=COLUMNS)
