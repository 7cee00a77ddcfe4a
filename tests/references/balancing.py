"""Loss-free balancing, sigmoid gates and the z-loss as plain loops; nothing here imports dsv2.

Loss-free balancing: arXiv 2408.15664, Algorithm 1. Sigmoid gates: arXiv 2412.19437, (13) to (20). z-loss: arXiv
2202.08906, (5).
"""

import math

import torch
from torch import Tensor

from tests import references


def sigmoids(u: Tensor, centroids: Tensor) -> Tensor:
    """s_i = 1 / (1 + e^-(u . e_i)); u (B, T, d), centroids (E, d) -> (B, T, E)."""
    rows = [torch.stack([1 / (1 + torch.exp(-(e @ token))) for e in centroids]) for token in u.flatten(0, 1)]
    return torch.stack(rows).view(*u.shape[:2], len(centroids))


def choose(s: Tensor, bias: Tensor, top_k: int, num_devices: int = 1, max_devices: int | None = None) -> Tensor:
    """The K experts of highest s + b on the M devices whose best s + b is best, in the order of s: (B, T, K)."""
    chosen, _ = references.route(s.detach() + bias, top_k, num_devices, max_devices)
    for b in range(len(s)):
        for t in range(s.shape[1]):
            chosen[b, t] = torch.tensor(sorted(chosen[b, t].tolist(), key=lambda i, b=b, t=t: -s[b, t, i].item()))
    return chosen


def normalised(s: Tensor, experts: Tensor) -> Tensor:
    """g_k = s_k / sum over the chosen; (B, T, E), (B, T, K) -> (B, T, K)."""
    sequences = []
    for b in range(len(s)):
        tokens = []
        for t in range(s.shape[1]):
            own = [s[b, t, i] for i in experts[b, t].tolist()]
            tokens.append(torch.stack([value / sum(own) for value in own]))
        sequences.append(torch.stack(tokens))
    return torch.stack(sequences)


def over_all(s: Tensor) -> Tensor:
    """s'_i = s_i / sum_j s_j, of which the balance losses are (19)."""
    return torch.stack([torch.stack([row / sum(row) for row in sequence]) for sequence in s])


def moved(bias: list[float], experts: Tensor, rate: float) -> list[float]:
    """Every b_i one step up if fewer pairs than the mean are of expert i, and down if more; experts of any shape."""
    chosen = experts.flatten().tolist()
    mean = len(chosen) / len(bias)
    steps = []
    for expert in range(len(bias)):
        error = mean - chosen.count(expert)
        steps.append(rate if error > 0 else -rate if error < 0 else 0.0)
    return [b + step for b, step in zip(bias, steps, strict=True)]


def z_loss(logits: Tensor) -> Tensor:
    """Mean over tokens of (log sum_e e^x_e)^2, shifted by the largest; (B, T, E)."""
    squares = []
    for row in logits.flatten(0, -2):
        highest = max(x.item() for x in row)
        squares.append((highest + torch.log(sum(math.e ** (x - highest) for x in row))) ** 2)
    return sum(squares) / len(squares)
