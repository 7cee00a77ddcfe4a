"""AdamW with the report's decay groups (section 3.1.2)."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from dsv2.config import ConfigBase
from dsv2.training.schedule import StepDecay


class AdamW:
    """Hyperparameters of the optimiser, its schedule and gradient clipping."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        lr: float  # peak, after warm-up
        lr_factor: float = 1.0  # multiplies lr, so that studies can vary it relative to the preset
        betas: tuple[float, float] = (0.9, 0.95)
        eps: float = 1e-8
        weight_decay: float = 0.1
        clip_norm: float = 1.0  # maximum global gradient norm
        schedule: StepDecay.Config = field(default_factory=StepDecay.Config)

        def __post_init__(self) -> None:
            self.require(0 < self.lr < math.inf, "lr", "positive and finite")
            self.require(0 < self.highest_lr < math.inf, "lr_factor", "positive, and times lr finite")
            self.require(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers from 0 to below 1")
            self.require(0 < self.eps < math.inf, "eps", "positive and finite")
            self.require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more, and finite")
            self.require(self.clip_norm > 0, "clip_norm", "positive; .inf for no clipping")

        @property
        def highest_lr(self) -> float:
            return self.lr * self.lr_factor

        def groups(self, model: nn.Module) -> list[list[str]]:
            """Return the names of the weights that decay, the matrices, and of those that do not, of norms."""
            weights = dict(model.named_parameters())
            matrices = [name for name, weight in weights.items() if weight.dim() > 1]
            return [matrices, [name for name in weights if name not in matrices]]

        def build(self, model: nn.Module) -> torch.optim.AdamW:
            """Build the fused optimiser, with weight decay on matrices and none on norm weights."""
            weights = dict(model.named_parameters())
            groups = [
                {"params": [weights[name] for name in names], "weight_decay": decay}
                for names, decay in zip(self.groups(model), (self.weight_decay, 0.0), strict=True)
            ]
            return torch.optim.AdamW(groups, lr=self.highest_lr, betas=self.betas, eps=self.eps, fused=True)
