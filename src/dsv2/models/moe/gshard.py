"""GShard's layer (arXiv 2006.16668, Algorithm 1), with the batch as group: two experts per token, the second random.

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


class GShard(MoE):
    """The two best experts, with gates renormalised over the two (lines 6 and 16).

    In training the second is used with probability 2 g_2 (line 19), and an expert has a capacity of `capacity_factor`
    times its share of the batch's 2 B T choices, first choices first; unused second choices count towards it too
    (line 22). Choices left out for either reason are `dropped`. Evaluation uses both experts and drops nothing, so
    results do not depend on the other sequences of a batch.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MoE.Config):
        drops_by_device = False

        top_k: int = 2
        capacity_factor: float = 1.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(self.top_k == 2, "top_k", "2, since GShard chooses two experts")
            self.require(0 < self.capacity_factor < math.inf, "capacity_factor", "positive and finite")
            self.refuse_what_is_deepseeks("GShard")

        @property
        def couples_sequences(self) -> bool:
            return True  # expert capacity is per batch

        def balance_losses(self, routing: Routing) -> BalanceLosses:
            """Return l_aux times E^2 as `expert` (line 13), so that 1 is perfect balance, and zeros for the others."""
            return first_choice_losses(routing)

        def build(self, dim: int, ops: Ops = PLAIN) -> "GShard":
            return GShard(self, dim, ops)

    config: Config

    def route(self, u: Tensor, hints: Hints = NONE) -> Routing:
        affinities = self.router(u)  # line 2
        experts = route(affinities, top_k=2)[0] if hints.replay is None else hints.replay.experts
        gates = affinities.gather(-1, experts)
        gates = gates / gates.sum(-1, keepdim=True)
        routing = Routing(affinities, experts, gates)
        if not self.training:
            return routing
        config = self.config
        dropped = over_capacity(experts, num_experts=config.num_experts, capacity_factor=config.capacity_factor)
        drawn = hints.uniform(*experts.shape[:2], device=experts.device)  # line 17
        dropped[..., 1] |= 2 * gates[..., 1].detach() <= drawn
        return routing._replace(dropped=dropped)
