"""The three balance losses (section 2.2.3) and the one of GShard and Switch, as pure functions of a `Routing`.

B sequences, T tokens, E experts, K experts per token, D devices, M most devices per token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.models.moe.router import Routing, require_consistent, require_whole, token_devices


class BalanceLosses(NamedTuple):
    """Balance losses before their coefficients alpha_1, alpha_2, alpha_3; scalars, or (B,) if per sequence."""

    expert: Tensor
    device: Tensor
    communication: Tensor


def balance_losses_per_sequence(
    routing: Routing, *, num_devices: int = 1, max_devices: int | None = None
) -> BalanceLosses:
    """Return each loss per sequence, (B,) float32. Gradients reach the affinities through P only.

    Without a device limit a token can reach min(D, K) devices, which replaces M in the communication loss.
    """
    affinities, experts = routing.affinities.float(), routing.experts
    (_, length, num_experts), top_k = affinities.shape, experts.shape[-1]
    require_whole("num_devices", num_devices)
    if num_devices < 1 or num_experts % num_devices:
        raise ValueError(f"num_devices={num_devices}: must be a divisor of the number of experts, {num_experts}")
    if max_devices is not None:
        require_whole("max_devices", max_devices)
    if max_devices is not None and not 1 <= max_devices <= num_devices:
        raise ValueError(f"max_devices={max_devices}: must be between 1 and num_devices={num_devices}, or None")
    most = min(num_devices, top_k) if max_devices is None else max_devices

    counts = load_per_sequence(experts, num_experts)  # c, (B, E)
    f = counts * (num_experts / (top_k * length))  # (24)
    p = affinities.mean(1)  # (25), (B, E)

    f_device = f.unflatten(-1, (num_devices, -1)).mean(-1)  # (27), (B, D)
    p_device = p.unflatten(-1, (num_devices, -1)).sum(-1)  # (28), (B, D)

    received = token_devices(experts, num_experts, num_devices).sum(1).float()  # tokens sent to each device, (B, D)
    f_sent = received * (num_devices / (most * length))  # (30)
    return BalanceLosses(
        expert=(f * p).sum(-1),  # (23)
        device=(f_device * p_device).sum(-1),  # (26)
        communication=(f_sent * p_device).sum(-1),  # (29); P'' is P', (31)
    )


def balance_losses(routing: Routing, *, num_devices: int = 1, max_devices: int | None = None) -> BalanceLosses:
    """Return the losses averaged over sequences, float32 scalars. Perfect balance gives expert = device = 1.

    Raises ValueError, naming the field, for tensors that do not fit together and for numbers of devices out of range.
    """
    require_consistent(routing, wait=True)
    if not routing.experts.numel():
        raise ValueError(f"experts has shape {tuple(routing.experts.shape)}: must have at least one sequence and token")
    losses = balance_losses_per_sequence(routing, num_devices=num_devices, max_devices=max_devices)
    return BalanceLosses(*(loss.mean() for loss in losses))


def first_choice_losses(routing: Routing) -> BalanceLosses:
    """Return E sum_e f_e P_e as `expert`, the auxiliary loss of GShard and Switch, and zeros for the others; (B,) each.

    f_e is the share of the batch's tokens whose first choice is e, dropped or not, and P_e the mean affinity of a
    sequence, so that the mean over sequences is the loss of the whole batch. Gradients reach P only.
    """
    affinities, first = routing.affinities.float(), routing.experts[..., 0]
    num_experts = affinities.shape[-1]
    f = torch.bincount(first.flatten(), minlength=num_experts) / first.numel()  # (E,)
    expert = num_experts * affinities.mean(1) @ f
    return BalanceLosses(expert, torch.zeros_like(expert), torch.zeros_like(expert))


def load_per_sequence(experts: Tensor, num_experts: int) -> Tensor:
    """Count the tokens that chose each expert, (B, E) float32 without gradient, from experts (B, T, K)."""
    chosen = experts.flatten(1)
    counts = torch.zeros(experts.shape[0], num_experts, device=experts.device)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float32))
