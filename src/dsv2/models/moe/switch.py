"""The Switch layer (arXiv 2101.03961, section 2): one expert per token.

B batch, T tokens, d model width, E routed experts.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from dsv2.models.moe.balance import BalanceLosses, first_choice_losses
from dsv2.models.moe.capacity import over_capacity
from dsv2.models.moe.hints import NONE, Hints
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing, route
from dsv2.models.ops import PLAIN, Ops


class Switch(MoE):
    """The best expert, weighted by its affinity p_i (2), not renormalised.

    In training an expert has a capacity of `capacity_factor` B T / E tokens of the batch (3); later tokens are
    `dropped`, and only the residual stream carries them. In training, each element of the router's input (not the
    experts') is multiplied by a random number between 1 - jitter and 1 + jitter (appendix C). Evaluation has neither
    dropping nor noise, so results do not depend on the other sequences of a batch.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MoE.Config):
        drops_by_device = False

        top_k: int = 1
        capacity_factor: float = 1.25
        jitter: float = 1e-2  # 0: none

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(self.top_k == 1, "top_k", "1, since Switch chooses one expert")
            self.require(0 < self.capacity_factor < math.inf, "capacity_factor", "positive and finite")
            self.require(0 <= self.jitter < 1, "jitter", "from 0 to below 1")
            self.refuse_what_is_deepseeks("Switch")

        @property
        def couples_sequences(self) -> bool:
            return True  # expert capacity is per batch

        def balance_losses(self, routing: Routing) -> BalanceLosses:
            """Return N sum_i f_i P_i over the batch as `expert` (4-6), before its alpha, and zeros for the others."""
            return first_choice_losses(routing)

        def build(self, dim: int, ops: Ops = PLAIN) -> "Switch":
            return Switch(self, dim, ops)

    config: Config

    def route(self, u: Tensor, hints: Hints = NONE) -> Routing:
        config = self.config
        inputs = u.float()
        if self.training and config.jitter:
            inputs = inputs * (1 + config.jitter * (2 * hints.uniform(*u.shape, device=u.device) - 1))
        affinities = self.router(inputs)  # (1)
        experts = route(affinities, top_k=1)[0] if hints.replay is None else hints.replay.experts
        routing = Routing(affinities, experts, affinities.gather(-1, experts))
        if not self.training:
            return routing
        dropped = over_capacity(experts, num_experts=config.num_experts, capacity_factor=config.capacity_factor)
        return routing._replace(dropped=dropped)
