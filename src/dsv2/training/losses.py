"""The training objective: cross-entropy plus the weighted balance losses of the MoE layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.config import ConfigBase
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing


class Losses(NamedTuple):
    """float32 scalars. `total` is differentiated; the balance losses are already multiplied by their alphas."""

    total: Tensor
    ce: Tensor  # nats per scored token
    expert: Tensor
    device: Tensor
    communication: Tensor


class BalanceLoss:
    """Coefficients of the balance losses, which are summed over layers (section 2.2.3).

    A coefficient has no effect where the FFN lacks its loss: dense and hash layers have none of the three; GShard and
    Switch layers have one auxiliary loss, weighted by `expert`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        expert: float = 0.0  # alpha_1
        device: float = 0.0  # alpha_2
        communication: float = 0.0  # alpha_3

        def __post_init__(self) -> None:
            for name in ("expert", "device", "communication"):
                self.require(0 <= getattr(self, name) < math.inf, name, "0 or more, and finite")


def training_loss(
    ce: Tensor, routings: Sequence[Routing], moe: MoE.Config | None, alphas: BalanceLoss.Config
) -> Losses:
    """Add alpha-weighted balance losses to the cross-entropy `ce`: mean over sequences, sum over layers."""
    balance = torch.zeros(3, device=ce.device)
    if moe is not None and any((alphas.expert, alphas.device, alphas.communication)):
        weights = torch.tensor((alphas.expert, alphas.device, alphas.communication), device=ce.device)
        for routing in routings:
            balance = balance + weights * torch.stack(moe.balance_losses(routing)).mean(-1)
    return Losses(ce + balance.sum(), ce, *balance.unbind())
