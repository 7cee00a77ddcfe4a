"""Rows of tokens to their experts and back. Specifications: `reference.sort_by_expert`, `gather_rows`, `weighted_sum`.

`order` (N,) sorts the N = tokens x K token-expert pairs by expert: row n is of pair order[n], of token order[n] // K.
Both directions are gathers, in backward too: a scatter-add would be slower and nondeterministic on GPUs. `F.embedding`
is the fastest row gather on CPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.choice import form


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return F.embedding(order // top_k, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        pairs = F.embedding(inverse, grads[0])
        return pairs.view(-1, ctx.top_k, pairs.shape[-1]).sum(1), None, None, None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(rows, gates, order, inverse)
        pairs = F.embedding(inverse, rows).view(*gates.shape, -1)
        return torch.bmm(gates.unsqueeze(1), pairs).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, gates, order, inverse = ctx.saved_tensors
        grad = F.embedding(order // gates.shape[1], grads[0])
        grad_gates = torch.linalg.vecdot(grad, rows)[inverse].view_as(gates)
        return grad.mul_(gates.flatten()[order].unsqueeze(1)), grad_gates, None, None


def sort_by_expert(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs in order of their experts (N,), the place of each pair in it, and the counts per expert (E,).

    Pairs of an expert keep their order. All int64.
    """
    if form("permute", torch.empty(0, device=experts.device)) == "triton":
        return torch.ops.dsv2_triton.sort_by_expert(experts, num_experts)
    order = experts.argsort(stable=True)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return order, inverse, torch.bincount(experts, minlength=num_experts)


def gather_rows(x: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
    """Gather the rows of x (tokens, d) in expert order: (N, d)."""
    if form("permute", x) == "triton":
        return torch.ops.dsv2_triton.gather_rows(x, order, inverse, top_k)
    return _Gather.apply(x, order, inverse, top_k)


def weighted_sum(rows: Tensor, gates: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Sum rows (N, d) times gates (tokens, K) per token: (tokens, d). Gates must have the dtype of rows."""
    if form("permute", rows, gates) == "triton":
        return torch.ops.dsv2_triton.weighted_sum(rows, gates, order, inverse)
    return _WeightedSum.apply(rows, gates, order, inverse)
