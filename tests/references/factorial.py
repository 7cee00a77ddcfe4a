"""A study whose arms are every combination of some factors' levels, with effects that are known."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

TWO = {"expert": [0.0, 0.003], "device": [0.0, 0.05], "limit": ["off", "on"]}
EFFECT = {"expert": -0.20, "device": -0.08, "limit": 0.0}
PAIR = 0.12  # expert and device together lose this


def design_of(factors: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    cells = [dict(zip(factors, place, strict=True)) for place in itertools.product(*factors.values())]
    return {"-".join(map(str, cell.values())): cell for cell in cells}


def simulate(seeds: int = 6, noise: float = 0.02, start: float = 0.1, draw: int = 0) -> pd.DataFrame:
    """2 x 2 x 2 cells with known effects; `start` is the seeds' own spread, shared by all cells."""
    rng, rows = np.random.default_rng(draw), []
    shared = rng.normal(0, start, seeds)
    for arm, cell in design_of(TWO).items():
        high = {factor: cell[factor] == those[1] for factor, those in TWO.items()}
        mean = 5 + sum(EFFECT[factor] for factor in TWO if high[factor]) + PAIR * (high["expert"] and high["device"])
        for seed in range(seeds):
            loss = mean + shared[seed] + rng.normal(0, noise)
            rows.append({"arm": arm, "seed": seed, "status": "finished", "val/loss": loss} | cell)
    return pd.DataFrame(rows)
