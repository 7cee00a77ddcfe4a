"""Group relative policy optimisation as loops over answers and tokens, written from section 4.2 (Eq. 32 to 34)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def advantages(rewards: Sequence[float]) -> list[float]:
    """(34): the rewards of a group less their mean, over their standard deviation."""
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [(reward - mean) / deviation if deviation else 0.0 for reward in rewards]


def objective(
    now: Sequence[Tensor],
    old: Sequence[Tensor],
    reference: Sequence[Tensor],
    advantage: Sequence[float],
    *,
    epsilon: float,
    beta: float,
) -> Tensor:
    """(32) and (33) for the answers of a step, each with its log-probabilities (|o|,): to be maximised."""
    whole = torch.zeros((), dtype=torch.float64)
    for answer in range(len(now)):
        mean = torch.zeros((), dtype=torch.float64)
        for token in range(len(now[answer])):
            ratio = torch.exp(now[answer][token] - old[answer][token])
            bounded = min(max(ratio, ratio.new_tensor(1 - epsilon)), ratio.new_tensor(1 + epsilon))
            gain = min(ratio * advantage[answer], bounded * advantage[answer])
            quotient = torch.exp(reference[answer][token] - now[answer][token])
            divergence = quotient - torch.log(quotient) - 1
            mean = mean + (gain - beta * divergence) / len(now[answer])
        whole = whole + mean / len(now)
    return whole
