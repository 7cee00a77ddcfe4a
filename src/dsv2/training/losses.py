"""The training objective: cross-entropy plus the weighted balance losses and z-loss of the MoE layers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.config import ConfigBase, added
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing
from dsv2.models.moe.z_loss import z_loss


class Losses(NamedTuple):
    """float32 scalars. `total` is differentiated; the losses of the routers are already multiplied by their alphas."""

    total: Tensor
    ce: Tensor  # nats per scored token
    expert: Tensor
    device: Tensor
    communication: Tensor
    z: Tensor


class BalanceLoss:
    """Coefficients of the balance losses (section 2.2.3) and of the z-loss, all summed over layers.

    A coefficient has no effect where the FFN lacks its loss: dense and hash layers have none; GShard and Switch layers
    have one auxiliary loss, weighted by `expert`; layers with sigmoid affinities have no z-loss.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        expert: float = 0.0  # alpha_1
        device: float = 0.0  # alpha_2
        communication: float = 0.0  # alpha_3
        z: float = added(0.0)  # of the z-loss; 0.001 in ST-MoE

        def __post_init__(self) -> None:
            for name in ("expert", "device", "communication", "z"):
                self.require(0 <= getattr(self, name) < math.inf, name, "0 or more, and finite")


def training_loss(
    ce: Tensor,
    routings: Sequence[Routing],
    moe: MoE.Config | None,
    alphas: BalanceLoss.Config,
    router_logits: Sequence[Tensor] = (),
    positions: Tensor | None = None,
) -> Losses:
    """Add the weighted losses of the routers to the cross-entropy `ce`: means over sequences, summed over layers.

    `router_logits` are those of `Transformer.hidden`, for the z-loss. With `positions` (B, T), a sequence is what its
    row holds besides the padding (-1) at its end.
    """
    balance = torch.zeros(3, device=ce.device)
    if moe is not None and any((alphas.expert, alphas.device, alphas.communication)):
        weights = torch.tensor((alphas.expert, alphas.device, alphas.communication), device=ce.device)
        lengths = None if positions is None else (positions >= 0).sum(1).tolist()
        for routing in routings:
            if lengths is None:
                losses = torch.stack(moe.balance_losses(routing))
            else:
                losses = torch.cat([torch.stack(moe.balance_losses(row)) for row in _rows(routing, lengths)], dim=-1)
            balance = balance + weights * losses.mean(-1)
    z = torch.zeros((), device=ce.device)
    for logits in router_logits:
        z = z + alphas.z * z_loss(logits, None if positions is None else positions >= 0)
    expert, device, communication = balance.unbind()
    return Losses(ce + balance.sum() + z, ce, expert, device, communication, z)


def _rows(routing: Routing, lengths: Sequence[int]) -> Iterator[Routing]:
    """Yield the routing of the first tokens of each row."""
    for row, length in enumerate(lengths):
        place = slice(row, row + 1), slice(length)
        yield routing.map(lambda tensor, place=place: tensor[place])  # type: ignore[misc]
