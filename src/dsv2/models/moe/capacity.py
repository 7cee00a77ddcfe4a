"""Expert capacity as in GShard and Switch: tokens that arrive after an expert is full are dropped.

B sequences, T tokens, E experts, K experts per token.
"""

import math

import torch
from torch import Tensor


def over_capacity(experts: Tensor, *, num_experts: int, capacity_factor: float) -> Tensor:
    """Return (B, T, K) bool, True for choices beyond the capacity of their expert, from experts (B, T, K).

    Each expert has a capacity of floor(capacity_factor * B T K / E). All first choices are assigned before any second
    choice, each in the order of the batch: sequence by sequence, token by token.
    """
    batch, length, top_k = experts.shape
    capacity = math.floor(capacity_factor * experts.numel() / num_experts)
    chosen = experts.permute(2, 0, 1).flatten()  # (K B T,), in order of assignment
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen, minlength=num_experts)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(chosen)  # within the expert
    rank[order] = torch.arange(len(chosen), device=chosen.device) - first[chosen[order]]
    return (rank >= capacity).view(top_k, batch, length).permute(1, 2, 0)
