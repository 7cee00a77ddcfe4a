"""Products of rows that are sorted by expert with each expert's own matrix. Specification: `reference.grouped`.

N rows, E experts, I input width, O output width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels import reference


class _Grouped(torch.autograd.Function):
    """`F.grouped_mm` with both gradients as grouped products too, so nothing is padded, masked or filled with zeros."""

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
    """rows (N, I) in blocks of counts (E,) by w (E, I, O): (N, O). Any floating dtype.

    torch's grouped product wants rows of a multiple of 16 bytes and no float64, and refuses the gradient of no rows at
    all where that is expanded from a scalar; such inputs take the reference.
    """
    aligned = all(width * w.element_size() % 16 == 0 for width in w.shape[1:])
    if not aligned or not len(rows) or w.dtype == torch.float64:
        return reference.grouped(rows, counts, w)
    offsets = counts.cumsum(0).to(torch.int32)
    return _Grouped.apply(rows, offsets, w)
