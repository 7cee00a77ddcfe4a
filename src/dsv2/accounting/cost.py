"""GPU hours and price of a training run, from its FLOPs and a measured utilisation."""

import math
from typing import NamedTuple

from dsv2.config import ConfigError

H800_PEAK = 989e12  # dense bfloat16 FLOPs per second


class Cost(NamedTuple):
    """The cost of a training run; the price is in the currency of the price per hour."""

    flops: float
    gpu_hours: float
    price: float


def training_cost(
    flops_per_token: float, tokens: float, mfu: float, peak_flops: float = H800_PEAK, price_per_hour: float = 0.0
) -> Cost:
    """Return the cost of training on `tokens` at a utilisation of `mfu` of `peak_flops` (FLOPs per second).

    `mfu` depends on how FLOPs are counted; recomputation, pipeline bubbles and communication lower it.
    """
    for name, value in (("flops_per_token", flops_per_token), ("tokens", tokens), ("gpu_peak", peak_flops)):
        if not 0 < value < math.inf:
            raise ConfigError(name, value, "positive and finite")
    if not 0 < mfu <= 1:
        raise ConfigError("mfu", mfu, "a share of the peak, above 0 and at most 1")
    if not 0 <= price_per_hour < math.inf:
        raise ConfigError("gpu_price", price_per_hour, "0 or more, and finite")
    hours = flops_per_token * tokens / (mfu * peak_flops) / 3600
    return Cost(flops_per_token * tokens, hours, hours * price_per_hour)


def implied_mfu(flops_per_token: float, tokens: float, gpu_hours: float, peak_flops: float = H800_PEAK) -> float:
    """Return the utilisation at which training on `tokens` takes `gpu_hours`."""
    return training_cost(flops_per_token, tokens, 1.0, peak_flops).gpu_hours / gpu_hours
