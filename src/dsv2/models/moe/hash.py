"""The hash layer (arXiv 2106.04426, section 3): the token id alone determines the expert.

B batch, T tokens, d model width, E routed experts.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv2.models.moe.balance import BalanceLosses
from dsv2.models.moe.hints import NONE, Hints
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing
from dsv2.models.ops import PLAIN, Ops
from dsv2.models.weights import Weight


class Hash(MoE):
    """One expert per token by a random hash, with gate 1; routing is not learned, balanced or subject to dropping.

    All layers use the same hash. Affinities are 1 for the chosen expert and 0 for the others.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MoE.Config):
        drops_by_device = False

        top_k: int = 1
        hash_seed: int = 0  # selects the hash, independently of the run's seed

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(self.top_k == 1, "top_k", "1, since a hash selects one expert")
            self.require(0 <= self.hash_seed < 2**63, "hash_seed", "0 or more and less than 2**63")
            self.refuse_what_is_deepseeks("a hash layer")

        def weights(self, dim: int) -> list[Weight]:
            return [weight for weight in super().weights(dim) if weight.name != "router.w"]

        def balance_losses(self, routing: Routing) -> BalanceLosses:
            """Return zeros: there are no balance losses."""
            zeros = routing.affinities.new_zeros(len(routing.experts))
            return BalanceLosses(zeros, zeros, zeros)

        def build_router(self, dim: int) -> nn.Module:
            return RandomHash(self.num_experts, self.hash_seed)

        def build(self, dim: int, ops: Ops = PLAIN) -> "Hash":
            return Hash(self, dim, ops)

    def route(self, u: Tensor, hints: Hints = NONE) -> Routing:
        if hints.replay is not None:
            experts = hints.replay.experts
        elif hints.tokens is not None:
            experts = self.router(hints.tokens)[..., None]
        else:
            raise ValueError("tokens=None: a hash layer routes by token ids, which must be passed in Hints")
        affinities = F.one_hot(experts[..., 0], self.config.num_experts).float()
        return Routing(affinities, experts, torch.ones_like(experts, dtype=torch.float32))


class RandomHash(nn.Module):
    """A random table computed on the fly: the id-th number of splitmix64, modulo the number of experts."""

    def __init__(self, num_experts: int, seed: int) -> None:
        super().__init__()
        self.num_experts, self.seed = num_experts, seed

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the expert of each token, (B, T) int64, from tokens (B, T) int64; arithmetic wraps at 64 bits."""
        x = self.seed + (tokens + 1) * _signed(0x9E3779B97F4A7C15)
        x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
        x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
        return _shifted(x ^ _shifted(x, 31), 1) % self.num_experts  # 63 bits: not negative


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return x >> bits, filled with zeros from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64)
