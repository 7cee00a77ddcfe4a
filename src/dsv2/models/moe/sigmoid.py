"""Sigmoid affinities, with gates normalised over the chosen experts (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

B batch, T tokens, d model width, E routed experts, K experts per token.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from dsv2.models.moe.balance import BalanceLosses
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Router, Routing
from dsv2.models.ops import PLAIN, Ops

LEAST = 1e-20  # of the sum that gates are divided by: affinities that underflow give gates of 0


class SigmoidRouter(Router):
    """Affinities of which each is between 0 and 1 by itself, s = sigmoid(u . e) (15)."""

    def forward(self, u: Tensor) -> Tensor:
        return self.logits(u).sigmoid()


class Sigmoid(MoE):
    """DeepSeekMoE with sigmoid affinities, and gates of which those of a token add up to 1, g = s / sum s (13, 14)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MoE.Config):
        def balance_losses(self, routing: Routing) -> BalanceLosses:
            """Return the losses of affinities that are normalised over all experts, as in (17) to (20)."""
            s = routing.affinities
            return super().balance_losses(routing._replace(affinities=s / s.sum(-1, keepdim=True)))

        def build_router(self, dim: int) -> nn.Module:
            return SigmoidRouter(self.num_experts, dim)

        def build(self, dim: int, ops: Ops = PLAIN) -> "Sigmoid":
            return Sigmoid(self, dim, ops)

    def gate(self, affinities: Tensor, experts: Tensor) -> Tensor:
        chosen = affinities.gather(-1, experts)
        return chosen / chosen.sum(-1, keepdim=True).clamp(min=LEAST)
