"""Gradients of several processes: their mean over the shares of a step, and their global norm."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsv2.distributed.mesh import Mesh
from dsv2.distributed.shards import Parts


def average(parts: Parts, mesh: Mesh) -> None:
    """Replace the gradients, each of the mean loss of one share, by those of the mean over all shares.

    Experts have already seen the tokens of all processes that hold experts with them, so that their gradients are
    summed over replicas alone, and divided by the number of shares like all others. Weights without a gradient get 0.
    """
    for weights, group in ((parts.dense, mesh.shares), (parts.experts, mesh.replicas)):
        for dtype_and_device in _alike(weights.values()):
            _sum(dtype_and_device, group, mesh.num_shares)


def _alike(weights: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group trainable weights by type and device, as they can be reduced together."""
    groups: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for weight in weights:
        if weight.requires_grad:
            groups.setdefault((weight.dtype, weight.device), []).append(weight)
    return list(groups.values())


def _sum(weights: Sequence[nn.Parameter], group: dist.ProcessGroup, divisor: int) -> None:
    """Sum the gradients over a group, in one reduction, and divide them."""
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if dist.get_world_size(group) > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat, group=group)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))
    if divisor > 1:
        for gradient in gradients:
            gradient.div_(divisor)


def clip(parts: Parts, mesh: Mesh, max_norm: float) -> Tensor:
    """Scale the averaged gradients to a global norm of at most `max_norm`, and return their norm, before that.

    Every weight counts once, wherever it lies.
    """
    norm = torch.nn.utils.get_total_norm(_gradients(parts.dense))
    if parts.experts:
        squared = torch.nn.utils.get_total_norm(_gradients(parts.experts)).square()
        dist.all_reduce(squared, group=mesh.experts)
        norm = (norm.square() + squared).sqrt()
    if mesh.num_stages > 1:
        squared = norm.square()
        dist.all_reduce(squared, group=mesh.stages)
        norm = squared.sqrt()
    for part in parts:
        torch.nn.utils.clip_grads_with_norm_(part.values(), max_norm, norm)
    return norm


def _gradients(weights: dict[str, nn.Parameter]) -> list[Tensor]:
    return [weight.grad for weight in weights.values() if weight.grad is not None]
