"""The routed experts: a small SwiGLU each, computed as grouped matmuls over rows sorted by expert.

N rows, E experts, d model width, W expert width.
"""

import torch
from torch import Tensor, nn

from dsv2.kernels.swiglu import swiglu
from dsv2.models.ops import Ops


class Experts(nn.Module):
    """w_down[e] (silu(w_gate[e] x) * w_up[e] x) for rows x of expert e; weights are applied as x @ w."""

    def __init__(self, num_experts: int, dim: int, width: int, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.w_gate_up = nn.Parameter(torch.empty(num_experts, dim, 2 * width))  # gate columns, then up columns
        self.w_down = nn.Parameter(torch.empty(num_experts, width, dim))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Apply the experts to rows (N, d), of which the first counts[0] are for expert 0, and so on: (N, d)."""
        return self.ops.grouped(swiglu(self.ops.grouped(rows, counts, self.w_gate_up)), counts, self.w_down)
