"""From the router's logits to the experts of each token. Specification: `reference.route_logits`.

B batch, T tokens, E routed experts, K experts per token, D devices (equal groups of experts), M most devices per token.
"""

import torch
from torch import Tensor

from dsv2.kernels.choice import form


def route_logits(
    logits: Tensor, *, top_k: int, num_devices: int = 1, max_devices: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return affinities (B, T, E) float32, experts (B, T, K) int64, and gates (B, T, K) float32, from logits (B, T, E).

    Among equal affinities the compiled op and Triton's kernel choose the lowest expert, as the specification does;
    `torch.topk` promises no order. All of it is differentiable through affinities and gates.
    """
    limits = top_k, num_devices, num_devices if max_devices is None else max_devices
    chosen = form("router", logits)
    if chosen == "cpu":
        affinities, experts, gates = torch.ops.dsv2.route_logits(logits, *limits)
        return affinities, experts, gates
    if chosen == "triton":
        affinities, experts, gates = torch.ops.dsv2_triton.route_logits(logits.float().flatten(0, -2), *limits)
        shape = logits.shape[:-1]
        return affinities.view(logits.shape), experts.view(*shape, top_k), gates.view(*shape, top_k)
    affinities = logits.float().softmax(-1)
    experts = choose(affinities, *limits)
    return affinities, experts, affinities.gather(-1, experts)


def choose(affinities: Tensor, top_k: int, num_devices: int, max_devices: int) -> Tensor:
    """Return the K experts (B, T, K) of highest affinity (B, T, E) on the M devices whose best experts are the best."""
    eligible = affinities.detach()
    if max_devices < num_devices:
        groups = eligible.unflatten(-1, (num_devices, -1))  # (B, T, D, E / D)
        devices = groups.amax(-1).topk(max_devices, dim=-1).indices  # (B, T, M)
        allowed = torch.zeros(groups.shape[:-1], dtype=torch.bool, device=affinities.device).scatter_(-1, devices, True)
        groups = groups.clamp(min=torch.finfo(groups.dtype).min)  # -inf is for the experts of other devices alone
        eligible = groups.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(-2)
    return eligible.topk(top_k, dim=-1).indices
