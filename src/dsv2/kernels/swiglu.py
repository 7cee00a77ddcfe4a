"""SwiGLU's elementwise part as one autograd function that saves only its input. Specification: `reference.swiglu`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.choice import form


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad = torch.empty_like(gate_up)
        grad_gate, grad_up = grad.chunk(2, dim=-1)
        torch.mul(grads[0], F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        return grad


def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, (..., W), from gate and up concatenated, (..., 2W)."""
    chosen = form("swiglu", gate_up)
    if chosen == "cpu":
        return torch.ops.dsv2.swiglu(gate_up)
    if chosen == "triton":
        return torch.ops.dsv2_triton.swiglu(gate_up)
    return _SwiGLU.apply(gate_up)
