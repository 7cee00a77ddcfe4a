"""The DeepSeekMoE layer (section 2.2): route, dispatch, compute, combine.

B batch, T tokens, d model width, E routed experts, K of them per token, D devices, M most devices per token.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dsv2.config import ConfigBase
from dsv2.kernels.choice import form
from dsv2.kernels.router import choose, route_logits
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.balance import BalanceLosses, balance_losses_per_sequence
from dsv2.models.moe.dropping import Dropping, drop
from dsv2.models.moe.experts import Experts
from dsv2.models.moe.hints import NONE, Hints
from dsv2.models.moe.router import Router, Routing, routing_rules
from dsv2.models.ops import PLAIN, Ops
from dsv2.models.weights import Weight


class MoE(nn.Module):
    """Shared experts for every token, plus the gated sum of the token's routed experts (20)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        drops_by_device: ClassVar[bool] = True  # whether this type of layer has the device-level dropping of 2.2.4

        num_experts: int  # E, routed
        top_k: int  # K
        expert_dim: int  # hidden width of one expert
        num_shared: int = 0  # shared experts, fused into one FFN of their total width
        num_devices: int = 1  # D, equal consecutive groups of routed experts
        max_devices: int | None = None  # M; None: no limit
        routed_scaling_factor: float = 1.0
        dropping: Dropping.Config | None = None

        def __post_init__(self) -> None:
            rules = routing_rules(self.num_experts, self.top_k, self.num_devices, self.max_devices)
            for field, _, valid, holds in rules:
                self.require(holds, field, valid)
            self.require(self.expert_dim > 0, "expert_dim", "positive")
            self.require(self.num_shared >= 0, "num_shared", "0 or more")
            scales = 0 < self.routed_scaling_factor < math.inf
            self.require(scales, "routed_scaling_factor", "positive and finite")

        def weights(self, dim: int) -> list[Weight]:
            active = self.top_k / self.num_experts
            shared = SwiGLU.Config(width=self.num_shared * self.expert_dim).weights(dim) if self.num_shared else []
            return [
                Weight("router.w", (self.num_experts, dim)),
                Weight("experts.w_gate_up", (self.num_experts, dim, 2 * self.expert_dim), active),
                Weight("experts.w_down", (self.num_experts, self.expert_dim, dim), active),
                *(Weight(f"shared.{weight.name}", weight.shape) for weight in shared),
            ]

        def buffers(self) -> dict[str, tuple[int, ...]]:
            """Return the shape of each tensor that the layer stores beside its weights, by its name in the module."""
            return {}

        def balance_losses(self, routing: Routing) -> BalanceLosses:
            """Return the balance losses of this type of layer per sequence, (B,) each, before the alphas.

            Losses that the type does not have are zero.
            """
            return balance_losses_per_sequence(routing, num_devices=self.num_devices, max_devices=self.max_devices)

        @property
        def couples_sequences(self) -> bool:
            """Whether the output for a sequence in training depends on the other sequences of its batch."""
            return self.dropping is not None

        def refuse_what_is_deepseeks(self, kind: str) -> None:
            """Raise ConfigError for fields that only DeepSeekMoE supports."""
            self.require(self.max_devices is None, "max_devices", f"null, since {kind} has no device limit")
            self.require(self.routed_scaling_factor == 1, "routed_scaling_factor", f"1, since {kind} has no scaling")
            self.require(self.dropping is None, "dropping", f"null, since {kind} has no device-level dropping")

        def build_router(self, dim: int) -> nn.Module:
            return Router(self.num_experts, dim)

        def build(self, dim: int, ops: Ops = PLAIN) -> "MoE":
            return MoE(self, dim, ops)

    def __init__(self, config: Config, dim: int, ops: Ops) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.router = config.build_router(dim)
        self.experts = Experts(config.num_experts, dim, config.expert_dim, ops)
        self.shared = (
            SwiGLU.Config(width=config.num_shared * config.expert_dim).build(dim, ops) if config.num_shared else None
        )

    def forward(self, u: Tensor, hints: Hints = NONE) -> tuple[Tensor, Routing]:
        """Map u (B, T, d) to (B, T, d), and return the routing."""
        routing = self.route(u, hints)
        chosen = form("experts", u)
        in_one_op = chosen == "triton" or (chosen == "cpu" and self.ops == PLAIN)  # the CPU's takes float32 alone
        if in_one_op and self.ops.experts is not None:
            weights = self.experts.w_gate_up, self.experts.w_down
            routed, shared = self.ops.experts(u, routing.experts, routing.live_gates, *weights), self._shared(u)
        else:
            rows, counts, ticket = self.ops.dispatcher.dispatch(u, routing)
            shared = self._shared(u)  # here, so that communication can overlap with it
            routed = self.ops.dispatcher.combine(self.experts(rows, counts), ticket)
        if self.config.routed_scaling_factor != 1.0:
            routed = routed * self.config.routed_scaling_factor
        return routed if shared is None else shared + routed, routing

    def _shared(self, u: Tensor) -> Tensor | None:
        return None if self.shared is None else self.shared(u)

    def route(self, u: Tensor, hints: Hints = NONE) -> Routing:
        """Choose experts for u (B, T, d); in training mode, also drop pairs above the devices' budgets."""
        config = self.config
        fused = hints.replay is None and self._routes_plainly() and form("router", u) != "torch"
        if fused and (logits := self.router_logits(u)) is not None:
            limits: dict[str, Any] = {name: getattr(config, name) for name in ("top_k", "num_devices", "max_devices")}
            routing = Routing(*route_logits(logits, **limits))
        else:
            affinities = self.router(u)
            experts = self.choose(affinities) if hints.replay is None else hints.replay.experts
            routing = Routing(affinities, experts, self.gate(affinities, experts))
        if config.dropping is None or not self.training:
            return routing
        capacity = config.dropping.capacity_factor
        choose_dropped = self.ops.drop or drop
        over = choose_dropped(routing, num_devices=config.num_devices, capacity_factor=capacity, exempt=hints.exempt)
        return routing._replace(dropped=over)

    def choose(self, affinities: Tensor) -> Tensor:
        """Return the experts (B, T, K) int64 of each token, from its affinities (B, T, E)."""
        config = self.config
        most = config.num_devices if config.max_devices is None else config.max_devices
        return choose(affinities, config.top_k, config.num_devices, most)

    def gate(self, affinities: Tensor, experts: Tensor) -> Tensor:
        """Return the gates (B, T, K) of the chosen experts (21)."""
        return affinities.gather(-1, experts)

    def router_logits(self, u: Tensor) -> Tensor | None:
        """Return the logits (B, T, E) of the router's softmax for u (B, T, d); None for a router without one."""
        return self.router.logits(u) if type(self.router) is Router else None

    def _routes_plainly(self) -> bool:
        """Whether experts and gates are those that the compiled ops compute from logits."""
        own, router = type(self), self.router
        hooked = router._forward_hooks or router._forward_pre_hooks  # by interventions, which replace its affinities
        return own.choose is MoE.choose and own.gate is MoE.gate and not hooked
