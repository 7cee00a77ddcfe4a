"""Routing of tokens to experts (sections 2.2.1 and 2.2.2).

B batch, T tokens, E routed experts, K experts per token, D devices (equal groups of experts), M most devices per token.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dsv2.kernels.linear import linear
from dsv2.kernels.router import choose


class Routing(NamedTuple):
    """The routing of every token by one MoE layer."""

    affinities: Tensor  # (B, T, E) float32, softmax over the experts (Sigmoid, V3: sigmoid)
    experts: Tensor  # (B, T, K) int64, chosen experts, highest affinity first
    gates: Tensor  # (B, T, K) float32, their affinities, not renormalised (GShard, Sigmoid, V3: over the chosen)
    dropped: Tensor | None = None  # (B, T, K) bool, pairs dropped in training; None without dropping

    def map(self, change: Callable[[Tensor], Tensor]) -> "Routing":
        """Return the routing with every tensor changed alike, as to those of some of the tokens."""
        dropped = None if self.dropped is None else change(self.dropped)
        return Routing(change(self.affinities), change(self.experts), change(self.gates), dropped)

    @property
    def live_gates(self) -> Tensor:
        """The gates, 0 for dropped pairs, (B, T, K)."""
        return self.gates if self.dropped is None else self.gates.masked_fill(self.dropped, 0.0)


class Router(nn.Module):
    """Affinities of tokens to expert centroids, in float32 at any precision of the model."""

    def __init__(self, num_experts: int, dim: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(num_experts, dim))

    def forward(self, u: Tensor) -> Tensor:
        """Return the softmax affinities (B, T, E) of u (B, T, d)."""
        return self.logits(u).softmax(-1)  # (22)

    def logits(self, u: Tensor) -> Tensor:
        return linear(u.float(), self.w.float())


def route(
    affinities: Tensor, *, top_k: int, num_devices: int = 1, max_devices: int | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the K experts of highest affinity on at most M devices: experts (B, T, K) int64 and gates (B, T, K).

    With `max_devices`, a token's devices are those whose best expert has the highest affinity (section 2.2.2). Devices
    hold equal consecutive groups of experts. Raises ValueError if M devices do not have K experts, and TypeError for
    affinities that are no floating-point numbers.
    """
    if not isinstance(affinities, Tensor) or not affinities.is_floating_point():
        raise TypeError(f"affinities has {_kind(affinities)}: must be a floating-point tensor (B, T, E)")
    if affinities.dim() < 1:
        raise ValueError(f"affinities has shape {tuple(affinities.shape)}: must be (B, T, E)")
    num_experts = affinities.shape[-1]
    check_routing(num_experts, top_k, num_devices, max_devices)
    experts = choose(affinities, top_k, num_devices, num_devices if max_devices is None else max_devices)
    return experts, affinities.gather(-1, experts)


def check_routing(num_experts: int, top_k: int, num_devices: int, max_devices: int | None) -> None:
    """Raise ValueError, naming the field, unless K of E experts can be chosen on M of D devices."""
    for name, given in (("top_k", top_k), ("num_devices", num_devices), ("max_devices", max_devices)):
        if given is not None or name != "max_devices":
            require_whole(name, given)
    for field, value, valid, holds in routing_rules(num_experts, top_k, num_devices, max_devices):
        if not holds:
            raise ValueError(f"{field}={value}: must be {valid}")


def require_whole(name: str, value: object) -> None:
    """Raise ValueError, naming the field, unless the value is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r}: must be a whole number")


def routing_rules(
    num_experts: int, top_k: int, num_devices: int, max_devices: int | None
) -> list[tuple[str, int | None, str, bool]]:
    """Return the constraints of routing as (field, value, what is valid, whether it holds)."""
    divides = num_devices > 0 and num_experts % num_devices == 0
    most = num_devices if max_devices is None else max_devices
    reachable = most * (num_experts // max(num_devices, 1))
    return [
        ("num_experts", num_experts, "at least 1", num_experts > 0),
        ("num_devices", num_devices, f"a divisor of num_experts={num_experts}", divides),
        ("max_devices", max_devices, f"between 1 and num_devices={num_devices}, or null", 1 <= most <= num_devices),
        ("top_k", top_k, f"between 1 and {reachable}, the experts on {most} devices", 1 <= top_k <= reachable),
    ]


def require_consistent(routing: Routing, *, wait: bool) -> None:
    """Raise ValueError or TypeError, naming the field, unless the tensors of a routing fit together.

    Experts are compared with their number too, on a GPU only if `wait`: it has to be waited for.
    """
    if not isinstance(routing, Routing):
        raise TypeError(f"routing has {_kind(routing)}: must be a Routing")
    affinities, experts, gates = routing[:3]
    if not isinstance(affinities, Tensor) or not affinities.is_floating_point() or affinities.dim() != 3:
        raise ValueError(f"affinities has {_kind(affinities)}: must be a floating-point tensor (B, T, E)")
    for name, tensor in (("experts", experts), ("gates", gates)):
        fits = isinstance(tensor, Tensor) and tensor.dim() == 3 and tensor.shape[:2] == affinities.shape[:2]
        if not fits or not 1 <= tensor.shape[2] <= affinities.shape[2]:
            valid = f"(B, T, K) with the B and T of the affinities, {tuple(affinities.shape)}, and K from 1 to their E"
            raise ValueError(f"{name} has {_kind(tensor)}: must be {valid}")
    if gates.shape != experts.shape:
        raise ValueError(f"gates has {_kind(gates)}: must have the shape of the experts, {tuple(experts.shape)}")
    if experts.dtype != torch.int64:
        raise ValueError(f"experts has {_kind(experts)}: must be int64")
    if (wait or experts.device.type == "cpu") and experts.numel():
        low, high = (int(bound) for bound in experts.aminmax())
        if low < 0 or high >= affinities.shape[2]:
            raise ValueError(f"experts has values from {low} to {high}: must be 0 to {affinities.shape[2] - 1}")


def _kind(value: object) -> str:
    """Return shape and type of a tensor, or the type of anything else."""
    return f"shape {tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"type {type(value).__name__}"


def token_devices(experts: Tensor, num_experts: int, num_devices: int) -> Tensor:
    """Return (B, T, D) bool, the devices that each token is sent to, from experts (B, T, K)."""
    devices = experts // (num_experts // num_devices)
    sent = torch.zeros(*experts.shape[:-1], num_devices, dtype=torch.bool, device=experts.device)
    return sent.scatter_(-1, devices, True)
