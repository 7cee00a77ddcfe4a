"""The routed experts of a layer as one compiled op. Specification: `reference.routed_experts`.

B batch, T tokens, d model width, E experts, K experts per token, W expert width.
"""

import torch
from torch import Tensor

from dsv2.kernels.choice import form
from dsv2.kernels.permute import sort_by_expert


def routed_experts(x: Tensor, experts: Tensor, gates: Tensor, w_gate_up: Tensor, w_down: Tensor) -> Tensor:
    """Sum the outputs of each token's experts, weighted by gates: (B, T, d).

    x (B, T, d), experts (B, T, K) int64, gates (B, T, K), w_gate_up (E, d, 2W), w_down (E, W, d). There must be
    compiled ops for x; without them, the layer dispatches rows and multiplies in groups. Triton's do not check that
    experts are numbers below E, for which the GPU would have to be waited for.
    """
    if form("experts", x, w_gate_up) == "triton":
        places = sort_by_expert(experts.flatten(), len(w_down))
        flat, gates = x.flatten(0, -2), gates.flatten(0, -2)
        differentiable = torch.is_grad_enabled() and any(part.requires_grad for part in (x, gates, w_gate_up, w_down))
        out, _ = torch.ops.dsv2_triton.experts(flat, gates, *places, w_gate_up, w_down, differentiable)
        return out.view(x.shape)
    return torch.ops.dsv2.experts(x, experts, gates, w_gate_up, w_down)[0]
