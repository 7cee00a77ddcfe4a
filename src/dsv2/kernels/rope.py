"""Rotation of channel pairs as one autograd function. Specification: `reference.rotate`."""

from typing import Any

import torch
from torch import Tensor

from dsv2.kernels.choice import form


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, so only the rotations are saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotations: Tensor) -> Tensor:
        ctx.save_for_backward(rotations)
        return _turn(x, rotations)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rotations,) = ctx.saved_tensors
        return _turn(grads[0], rotations.conj()), None


def _turn(x: Tensor, rotations: Tensor) -> Tensor:
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    if pairs.storage_offset() % 2 or any(stride % 2 for stride in pairs.stride()[:-1]):
        pairs = pairs.clone(memory_format=torch.contiguous_format)  # a slice that starts inside a pair
    return torch.view_as_real(torch.view_as_complex(pairs) * rotations.unsqueeze(-2)).flatten(-2).to(x.dtype)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the pairs (x0, x1), (x2, x3), ... of x (B, T, H, R) by complex rotations (T, R / 2) or (B, T, R / 2).

    Computed in at least float32.
    """
    if form("rope", x) == "triton":
        return torch.ops.dsv2_triton.rotate(x, rotations, False)
    return _Rotate.apply(x, rotations)
