"""SwiGLU, the dense feed-forward network and the shared experts of DeepSeekMoE.

B batch, T tokens, d model width, W hidden width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsv2.config import ConfigBase
from dsv2.kernels.swiglu import swiglu
from dsv2.models.ops import PLAIN, Ops
from dsv2.models.weights import Weight


class SwiGLU(nn.Module):
    """w_down (silu(w_gate x) * w_up x), with the gate and up matrices stacked in one."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        width: int  # hidden width W

        def __post_init__(self) -> None:
            self.require(self.width > 0, "width", "positive")

        def weights(self, dim: int) -> list[Weight]:
            return [Weight("w_gate_up", (2 * self.width, dim)), Weight("w_down", (dim, self.width))]

        def build(self, dim: int, ops: Ops = PLAIN) -> "SwiGLU":
            return SwiGLU(self, dim, ops)

    def __init__(self, config: Config, dim: int, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.ops = ops
        self.w_gate_up = nn.Parameter(torch.empty(2 * config.width, dim))  # gate rows, then up rows
        self.w_down = nn.Parameter(torch.empty(dim, config.width))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, d) to (B, T, d)."""
        return self.ops.linear(swiglu(self.ops.linear(x, self.w_gate_up)), self.w_down)
