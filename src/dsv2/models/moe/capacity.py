"""Capacity of an expert, as GShard and Switch have it: what comes later than it fills is dropped.

B sequences, T tokens, E experts, K experts per token.
"""

import math

import torch
from torch import Tensor


def over_capacity(experts: Tensor, *, num_experts: int, capacity_factor: float) -> Tensor:
    """(B, T, K) bool: True where a token came too late for the expert it chose, from experts (B, T, K).

    Each expert has floor(capacity_factor * B T K / E) places. All first choices take theirs before any second choice,
    each in the order of the batch: sequence by sequence, token by token.
    """
    batch, length, top_k = experts.shape
    capacity = math.floor(capacity_factor * experts.numel() / num_experts)
    chosen = experts.permute(2, 0, 1).flatten()  # (K B T,), in the order in which places are taken
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen, minlength=num_experts)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(chosen)
    place[order] = torch.arange(len(chosen), device=chosen.device) - first[chosen[order]]
    return (place >= capacity).view(top_k, batch, length).permute(1, 2, 0)
