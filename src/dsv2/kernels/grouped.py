"""Grouped matmul of rows sorted by expert with each expert's matrix. Specification: `reference.grouped`.

N rows, E experts, I input width, O output width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels import reference


class _Grouped(torch.autograd.Function):
    """`F.grouped_mm` whose gradients are grouped matmuls too, without padding, masks or zero filling."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, offsets: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(rows, offsets, w)
        return F.grouped_mm(rows, w, offs=offsets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, offsets, w = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_rows = F.grouped_mm(grad, w.transpose(1, 2), offs=offsets) if ctx.needs_input_grad[0] else None
        grad_w = F.grouped_mm(rows.t(), grad, offs=offsets) if ctx.needs_input_grad[2] else None
        return grad_rows, None, grad_w


def grouped(rows: Tensor, counts: Tensor, w: Tensor) -> Tensor:
    """Multiply rows (N, I), in blocks of counts (E,), by w (E, I, O): (N, O). Any floating dtype.

    `F.grouped_mm` needs rows of a multiple of 16 bytes, does not support float64, and fails on the gradient of zero
    rows if it is expanded from a scalar; for such inputs the reference is used.
    """
    aligned = all(width * w.element_size() % 16 == 0 for width in w.shape[1:])
    if not aligned or not len(rows) or w.dtype == torch.float64:
        return reference.grouped(rows, counts, w)
    offsets = counts.cumsum(0).to(torch.int32)
    return _Grouped.apply(rows, offsets, w)
