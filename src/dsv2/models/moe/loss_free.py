"""Loss-free balancing (arXiv 2408.15664): experts are chosen by affinity plus a bias that follows their load.

B batch, T tokens, d model width, E routed experts, K experts per token.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv2.models.moe.layer import MoE
from dsv2.models.ops import PLAIN, Ops


class LossFree(MoE):
    """DeepSeekMoE with a bias b (E,) in the choice of experts; gates and balance losses are of the affinities alone.

    The K experts are those of highest s + b, and a device limit is by s + b too (DeepSeek-V3, arXiv 2412.19437, (16)).
    The bias starts at 0 and has no gradient. `forward` does not change it: after every step of the optimiser the
    training loop calls `update_bias`. It is a buffer, so that checkpoints have it and evaluation uses it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MoE.Config):
        bias_update_rate: float = 0.001  # u, the step of the bias

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(0 < self.bias_update_rate < math.inf, "bias_update_rate", "positive and finite")

        def buffers(self) -> dict[str, tuple[int, ...]]:
            return {"bias": (self.num_experts,)}

        def build(self, dim: int, ops: Ops = PLAIN) -> "LossFree":
            return LossFree(self, dim, ops)

    config: Config
    bias: Tensor

    def __init__(self, config: Config, dim: int, ops: Ops) -> None:
        super().__init__(config, dim, ops)
        self.register_buffer("bias", torch.zeros(config.num_experts))

    def choose(self, affinities: Tensor) -> Tensor:
        """Return the experts of highest affinity plus bias, those of highest affinity first.

        Experts with an affinity of 0, as masked ones have, are chosen last, whatever their bias.
        """
        affinities = affinities.detach()
        experts = super().choose((affinities + self.bias).masked_fill(affinities == 0, -math.inf))
        order = affinities.gather(-1, experts).argsort(dim=-1, descending=True, stable=True)
        return experts.gather(-1, order)

    @torch.no_grad()
    def update_bias(self, load: Tensor) -> None:
        """Move the bias by one step: up for experts below the mean load (E,) int64, down for those above (Algorithm 1).

        The load is the number of tokens that chose each expert since the last update, over all micro-batches and
        processes of the optimiser's step.
        """
        below = load.sum() - load.numel() * load  # E times the mean load minus the load, in whole numbers
        self.bias += self.config.bias_update_rate * below.sign()
