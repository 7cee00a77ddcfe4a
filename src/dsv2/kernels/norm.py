"""RMSNorm as one autograd function. Specification: `reference.rms_norm`.

d model width.
"""

from typing import Any

import torch
from torch import Tensor

from dsv2.kernels.choice import form


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = (norm.square() / x.shape[-1] + eps).rsqrt()  # 1 / rms
        ctx.save_for_backward(x, w, scale)
        return (wide * scale).to(x.dtype).mul_(w)  # in place, so that a wider weight does not promote the result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Use torch's fused backward of LayerNorm with mean 0, and undo its term for the mean."""
        x, w, scale = ctx.saved_tensors
        grad, wide, weight = (part.to(scale.dtype) for part in (grads[0], x, w))
        width = [x.shape[-1]]
        grad_x, grad_w, _ = torch.ops.aten.native_layer_norm_backward(
            grad, wide, width, torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        grad_x.addcmul_((grad @ weight).unsqueeze(-1), scale, value=1 / x.shape[-1])
        return grad_x.to(x.dtype), grad_w.to(w.dtype), None


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """Return x (..., d) / rms(x) * w (d) in the dtype of x, with statistics in at least float32."""
    chosen = form("norm", x, w)
    if chosen == "cpu":
        return torch.ops.dsv2.rms_norm(x, w, eps)[0]
    if chosen == "triton":
        return torch.ops.dsv2_triton.rms_norm(x, w, eps)[0]
    return _RMSNorm.apply(x, w, eps)


def add_rms_norm(x: Tensor, delta: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + delta and its `rms_norm`, from x and delta (..., d)."""
    chosen = form("norm", x, delta, w)
    if chosen == "cpu":
        return torch.ops.dsv2.add_rms_norm(x, delta, w, eps)[:2]
    if chosen == "triton":
        return torch.ops.dsv2_triton.add_rms_norm(x, delta, w, eps)[:2]
    total = x + delta
    return total, rms_norm(total, w, eps)
