"""RMSNorm as one autograd node. Specification: `reference.rms_norm`."""

from typing import Any

import torch
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = (norm.square() / x.shape[-1] + eps).rsqrt()  # 1 / rms
        ctx.save_for_backward(x, w, scale)
        return (wide * scale).to(x.dtype) * w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w, scale = ctx.saved_tensors
        normed = x.to(scale.dtype) * scale
        grad = grads[0].to(normed.dtype)
        grad_w = torch.linalg.vecdot(grad.flatten(0, -2), normed.flatten(0, -2), dim=0)
        grad = grad * w
        along = torch.linalg.vecdot(grad, normed).unsqueeze(-1) / x.shape[-1]
        grad_x = torch.addcmul(grad, normed, along, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_w.to(w.dtype), None


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """x (..., d) times w (d) over its root mean square; statistics in float32 or wider, dtype of x kept."""
    return _RMSNorm.apply(x, w, eps)
