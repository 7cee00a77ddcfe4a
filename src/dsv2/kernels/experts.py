"""The routed experts of a layer as one compiled op. Specification: `reference.routed_experts`.

B batch, T tokens, d model width, E experts, K experts per token, W expert width.
"""

import torch
from torch import Tensor


def routed_experts(x: Tensor, experts: Tensor, gates: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """Sum the outputs of each token's experts, weighted by gates: (B, T, d).

    x (B, T, d), experts (B, T, K) int64, gates (B, T, K), w_gate_up (E, d, 2W), w_down (E, W, d). There must be
    compiled ops for x; without them, the layer dispatches rows and multiplies in groups.
    """
    return torch.ops.dsv2.experts(x, experts, gates, w_gate_up, w_down)[0]
