"""What is minimised: cross-entropy plus the weighted balance losses that every MoE layer's type has.

B batch, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.config import ConfigBase
from dsv2.data.source import NOT_SCORED
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing


class Losses(NamedTuple):
    """Scalars, float32. `total` is what the gradient is taken of; the balance losses already carry their alphas."""

    total: Tensor
    ce: Tensor  # nats per scored token
    expert: Tensor
    device: Tensor
    communication: Tensor


class BalanceLoss:
    """Coefficients of the balance losses, summed over layers (section 2.2.3).

    One whose loss the model's FFN does not have changes nothing: all three for a dense one and for a hash layer, device
    and communication for GShard and Switch, whose auxiliary loss `expert` weighs.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        expert: float = 0.0  # alpha_1
        device: float = 0.0  # alpha_2
        communication: float = 0.0  # alpha_3

        def __post_init__(self) -> None:
            for name in ("expert", "device", "communication"):
                self.require(getattr(self, name) >= 0, name, "0 or more")


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean nats over the scored targets (B, T) of logits (B, T, V), in float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NOT_SCORED)


def training_loss(
    logits: Tensor, targets: Tensor, routings: Sequence[Routing], moe: MoE.Config | None, alphas: BalanceLoss.Config
) -> Losses:
    """Cross-entropy plus alpha-weighted balance losses: mean over sequences, sum over layers."""
    ce = cross_entropy(logits, targets)
    balance = torch.zeros(3, device=ce.device)
    if moe is not None and any((alphas.expert, alphas.device, alphas.communication)):
        weights = torch.tensor((alphas.expert, alphas.device, alphas.communication), device=ce.device)
        for routing in routings:
            balance = balance + weights * torch.stack(moe.balance_losses(routing)).mean(-1)
    return Losses(ce + balance.sum(), ce, *balance.unbind())
