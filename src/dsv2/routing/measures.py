"""Measures of load balance, computed from counts that add up over batches.

B sequences, T tokens, E experts, K experts per token, D devices.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.models.moe.router import Routing, token_devices


class Counts(NamedTuple):
    """Sums over the tokens of one layer; counts of several batches are added field by field."""

    load: Tensor  # (E,) token-expert pairs
    dropped: Tensor  # (E,) dropped pairs
    received: Tensor  # (D,) tokens sent to each device, counted once however many of its experts they chose
    overflow: Tensor  # () pairs above a capacity factor of 1.0 per batch, whether or not they were dropped
    tokens: Tensor  # ()

    def __add__(self, other: object) -> "Counts":
        assert isinstance(other, Counts)
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


class Measures(NamedTuple):
    """Floats; under perfect balance violations are 0, the entropy is 1 and there are no dead experts."""

    max_violation: float  # highest load of an expert over the mean load, minus 1
    entropy: float  # of the load, over log E
    dead_experts: float  # share of experts without tokens
    device_max_violation: float  # max_violation of the pairs computed on each device
    received_max_violation: float  # max_violation of the tokens sent to each device
    drop_rate: float  # share of pairs that were dropped
    overflow: float  # share of pairs that a capacity factor of 1.0 would drop
    devices_per_token: float


def without_padding(routings: Sequence[Routing], positions: Tensor | None) -> tuple[Routing, ...]:
    """Return the routings of the tokens at `positions` (B, T) other than -1, as one sequence; all if they are None."""
    if positions is None or not routings:
        return tuple(routings)
    given = positions.to(routings[0].experts.device) >= 0
    return tuple(routing.map(lambda tensor: tensor[given].unsqueeze(0)) for routing in routings)


def count(routing: Routing, *, num_devices: int) -> Counts:
    """Count one layer's routing of one batch, as int64 on the routing's device."""
    experts, num_experts = routing.experts, routing.affinities.shape[-1]
    load = torch.bincount(experts.flatten(), minlength=num_experts)
    dropped = torch.zeros_like(load)
    if routing.dropped is not None:
        dropped = torch.bincount(experts[routing.dropped], minlength=num_experts)
    received = token_devices(experts, num_experts, num_devices).sum((0, 1))
    tokens = torch.tensor(experts[..., 0].numel(), device=load.device)
    return Counts(load, dropped, received, overflow(load, num_devices), tokens)


def overflow(load: Tensor, num_devices: int) -> Tensor:
    """Count the pairs of one batch above a capacity factor of 1.0 per device, from the load (E,): int64 scalar."""
    return (load.unflatten(0, (num_devices, -1)).sum(-1) - load.sum() // num_devices).clamp(min=0).sum()


def measure(counts: Counts) -> Measures:
    """Compute the measures of summed counts."""
    load, received = counts.load.double(), counts.received.double()
    pairs, by_device = load.sum(), load.unflatten(0, (received.numel(), -1)).sum(-1)
    share = load / pairs
    entropy = torch.special.entr(share).sum() / math.log(max(load.numel(), 2))
    return Measures(
        max_violation=_max_violation(load),
        entropy=float(entropy),
        dead_experts=float((load == 0).double().mean()),
        device_max_violation=_max_violation(by_device),
        received_max_violation=_max_violation(received),
        drop_rate=float(counts.dropped.sum() / pairs),
        overflow=float(counts.overflow / pairs),
        devices_per_token=float(received.sum() / counts.tokens),
    )


def mean_measures(layers: list[Measures]) -> dict[str, float]:
    """Return `routing/<name>` of each measure, averaged over layers; empty for a dense model."""
    if not layers:
        return {}
    columns = zip(Measures._fields, zip(*layers, strict=True), strict=True)
    return {f"routing/{name}": sum(column) / len(column) for name, column in columns}


def _max_violation(load: Tensor) -> float:
    return float(load.max() / load.mean() - 1)
