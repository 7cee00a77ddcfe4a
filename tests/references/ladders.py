"""Runs of two arms along a ladder of scales, whose loss follows a known curve over compute."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

SCALES = ("smoke", "tiny", "small", "base", "paper")
E, A, ALPHA = 1.7, 260.0, 0.15  # about 4.6 nats at 1e13 FLOPs, 3.4 at 5e15
ARMS = ("mha", "mla")


def simulate(
    rungs: int = 4, seeds: int = 5, noise: float = 0.004, draw: int = 0, gain: Sequence[float] = (0.97,) * 5
) -> pd.DataFrame:
    """Two arms whose noise is half shared by seed; the second's loss is the first's times `gain`, rung by rung."""
    rng, rows = np.random.default_rng(draw), []
    for rung in range(rungs):
        flops = 1e13 * 8.0**rung
        for seed in range(seeds):
            shared = rng.normal(0, noise / math.sqrt(2))
            for arm, factor in zip(ARMS, (1.0, gain[rung]), strict=True):
                off = shared + rng.normal(0, noise / math.sqrt(2))
                loss = factor * (E + A * flops**-ALPHA) * math.exp(off)
                rows.append({"scale": SCALES[rung], "arm": arm, "seed": seed, "flops": flops, "loss": loss})
    return pd.DataFrame(rows).sample(frac=1, random_state=draw)  # in no order
