"""Trials of an A/A study, which differ in their seed alone."""

import numpy as np
import pandas as pd


def aa(count: int = 60, seed: int = 0) -> pd.DataFrame:
    """Make `count` finished trials with a normal and an exponential metric."""
    rng = np.random.default_rng(seed)
    rows = [("a", i, "finished", rng.normal(5, 0.03), rng.exponential()) for i in range(count)]
    return pd.DataFrame(rows, columns=["arm", "seed", "status", "val/loss", "routing/max_violation"])
