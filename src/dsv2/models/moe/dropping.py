"""Device-level token dropping (section 2.2.4): training only, lowest affinity first.

B sequences, T tokens, E experts, K experts per token, D devices.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv2.config import ConfigBase
from dsv2.models.moe.router import Routing, require_consistent, require_whole


class Dropping:
    """The budget of a device, and the share of exempt sequences.

    Sequences are exempt independently of one another: of steps of B sequences, (1 - exempt_ratio)^B have none.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        capacity_factor: float = 1.0  # budget of a device / average load
        exempt_ratio: float = 0.1  # probability that a sequence is exempt

        def __post_init__(self) -> None:
            self.require(0 < self.capacity_factor < math.inf, "capacity_factor", "positive and finite")
            self.require(0 <= self.exempt_ratio <= 1, "exempt_ratio", "between 0 and 1")


def budget(pairs: int, *, num_devices: int, capacity_factor: float) -> int:
    """Return how many of a batch's token-expert pairs a device takes: floor(capacity_factor * pairs / D)."""
    return math.floor(capacity_factor * pairs / num_devices)


def drop(routing: Routing, *, num_devices: int, capacity_factor: float, exempt: Tensor | None = None) -> Tensor:
    """Return (B, T, K) bool, True for the token-expert pairs above their device's budget.

    The `budget` is that of B T K pairs. Pairs of `exempt` sequences ((B,) bool) use it first and are never dropped; of
    the others, those with the lowest affinity are dropped, later ones first among equals.

    Raises ValueError, naming the field, for tensors that do not fit together and for numbers out of range; on a GPU the
    experts are not compared with their number, since every step would have to wait for it.
    """
    require_consistent(routing, wait=False)
    require_whole("num_devices", num_devices)
    factor = isinstance(capacity_factor, int | float) and not isinstance(capacity_factor, bool)
    if not factor or not 0 < capacity_factor < math.inf:
        raise ValueError(f"capacity_factor={capacity_factor}: must be positive and finite")
    experts, num_experts = routing.experts, routing.affinities.shape[-1]
    if num_devices < 1 or num_experts % num_devices:
        raise ValueError(f"num_devices={num_devices}: must be a divisor of the number of experts, {num_experts}")
    pairs = experts.numel()
    room = budget(pairs, num_devices=num_devices, capacity_factor=capacity_factor)
    devices = (experts // (num_experts // num_devices)).flatten()  # (B T K,)
    rank_by = routing.affinities.detach().gather(-1, experts).flatten().float()
    if exempt is not None:
        if not isinstance(exempt, Tensor):
            raise TypeError(f"exempt has type {type(exempt).__name__}: must be a tensor (B,) bool")
        if exempt.shape != experts.shape[:1] or exempt.dtype != torch.bool:
            shape = f"{tuple(exempt.shape)} {exempt.dtype}"
            raise ValueError(
                f"exempt has shape {shape}: must be one entry per sequence, {tuple(experts.shape[:1])} bool"
            )
        kept = exempt[:, None, None].expand_as(experts).flatten()
        rank_by = torch.where(kept, float("inf"), rank_by)
    by_affinity = rank_by.argsort(descending=True, stable=True)
    order = by_affinity[devices[by_affinity].argsort(stable=True)]  # by device, then by descending affinity
    counts = torch.bincount(devices, minlength=num_devices)
    first = counts.cumsum(0) - counts
    rank = torch.arange(pairs, device=experts.device) - first[devices[order]]  # within the device
    dropped = torch.empty_like(devices, dtype=torch.bool)
    dropped[order] = rank >= room
    if exempt is not None:
        dropped &= ~kept
    return dropped.view_as(experts)
