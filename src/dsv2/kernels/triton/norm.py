"""RMSNorm, alone and of a residual sum. Specification: `reference.rms_norm`.

N rows, d model width. Bound by memory: forward reads and writes each element once, backward reads it twice and writes
it once. The weight's gradient is summed in two stages, in an order that depends on shapes only.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.layout import rows

PROGRAMS = 256  # of backward: two for each multiprocessor of an A100 or H100, few rows of partial sums


@triton.jit
def _forward(
    x,
    x_stride,
    delta,
    delta_stride,
    w,
    total,
    y,
    scale,
    N,
    d,
    eps,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < N) & (column < d)
    wide = tl.load(x + row * x_stride + column, mask, 0.0).to(tl.float32)
    if ADD:
        wide += tl.load(delta + row * delta_stride + column, mask, 0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + row * d + column, rounded, mask)
        wide = rounded.to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(wide * wide, 1, keep_dims=True) / d + eps)
    tl.store(scale + row, inverse_rms, row < N)
    normed = (wide * inverse_rms).to(y.dtype.element_ty).to(tl.float32)  # rounded before the weight, as specified
    weight = tl.load(w + column, column < d, 0.0).to(tl.float32)
    tl.store(y + row * d + column, (normed * weight).to(y.dtype.element_ty), mask)


@triton.jit
def _backward(
    grad_y,
    grad_y_stride,
    grad_total,
    grad_total_stride,
    x,
    x_stride,
    w,
    scale,
    grad_x,
    partial,
    N,
    d,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Go through every PROGRAMS-th block of rows; partial (programs, d) takes this program's sum for the weight."""
    column = tl.arange(0, BLOCK)[None, :]
    weight = tl.load(w + column, column < d, 0.0).to(tl.float32)
    summed = tl.zeros((ROWS, BLOCK), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(N, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        inverse_rms = tl.load(scale + row, row < N, 0.0)[:, None]  # as a column, each thread would load it many times
        row = row[:, None]
        mask = (row < N) & (column < d)
        normed = tl.load(x + row * x_stride + column, mask, 0.0).to(tl.float32) * inverse_rms
        grad = tl.load(grad_y + row * grad_y_stride + column, mask, 0.0).to(tl.float32)
        summed += grad * normed
        grad *= weight
        grad = inverse_rms * (grad - normed * (tl.sum(grad * normed, 1, keep_dims=True) / d))
        if ADD:
            grad += tl.load(grad_total + row * grad_total_stride + column, mask, 0.0).to(tl.float32)
        tl.store(grad_x + row * d + column, grad.to(grad_x.dtype.element_ty), mask)
    tl.store(partial + tl.program_id(0) * d + column, tl.sum(summed, 0, keep_dims=True), column < d)


def _tile(d: int, elements: int) -> dict[str, int]:
    """Return the launch of kernels that hold whole rows: 4096 elements at once, `elements` of them in each thread."""
    block = triton.next_power_of_2(d)
    height = max(1, 4096 // block)
    warps = height * block // (32 * elements)
    return {"ROWS": height, "BLOCK": block, "num_warps": min(max(warps, 1), 32)}


def _normed(x: Tensor, delta: Tensor | None, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x + delta, its norm (both (..., d)) and 1 / rms, float32 (...)."""
    dtype = x.dtype if delta is None else torch.promote_types(x.dtype, delta.dtype)
    total = x if delta is None else torch.empty(x.shape, dtype=dtype, device=x.device)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if x.numel():
        read, added, tile = rows(x), None if delta is None else rows(delta), _tile(x.shape[-1], elements=32)
        added_stride = 0 if added is None else added.stride(0)
        _forward[triton.cdiv(len(read), tile["ROWS"]),](
            *(read, read.stride(0), added, added_stride, w.contiguous(), total, y, scale, *read.shape, eps),
            ADD=delta is not None,
            **tile,
        )
    return total, y, scale


@torch.library.custom_op("dsv2_triton::rms_norm", mutates_args=())
def rms_norm(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of x (..., d) times w (d), in the dtype of x, and 1 / rms, float32 (...)."""
    return _normed(x, None, w, eps)[1:]


@torch.library.custom_op("dsv2_triton::add_rms_norm", mutates_args=())
def add_rms_norm(x: Tensor, delta: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x + delta, its norm times w, both (..., d), and 1 / rms of the sum, float32 (...)."""
    return _normed(x, delta, w, eps)


@torch.library.custom_op("dsv2_triton::rms_norm_backward", mutates_args=())
def rms_norm_backward(
    grad_y: Tensor, grad_total: Tensor | None, x: Tensor, w: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, the normed tensor (..., d), and of w; `grad_total` (..., d) is added to the first."""
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return grad_x, torch.zeros_like(w)
    read, grad, tile = rows(x), rows(grad_y), _tile(x.shape[-1], elements=16)
    added = None if grad_total is None else rows(grad_total)
    programs = min(triton.cdiv(len(read), tile["ROWS"]), PROGRAMS)
    partial = torch.empty(programs, len(w), dtype=torch.float32, device=x.device)
    _backward[programs,](
        *(grad, grad.stride(0), added, 0 if added is None else added.stride(0), read, read.stride(0)),
        *(w.contiguous(), scale, grad_x, partial, *read.shape),
        ADD=added is not None,
        **tile,
    )
    return grad_x, partial.sum(0).to(w.dtype)


@rms_norm.register_fake
def _(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[:-1], dtype=torch.float32)


@add_rms_norm.register_fake
def _(x: Tensor, delta: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.empty_like(x + delta, memory_format=torch.contiguous_format)
    return total, torch.empty_like(total), x.new_empty(x.shape[:-1], dtype=torch.float32)


@rms_norm_backward.register_fake
def _(grad_y: Tensor, grad_total: Tensor | None, x: Tensor, w: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(w)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, _ = inputs
    ctx.save_for_backward(x, w, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return None, None, None
    x, w, scale = ctx.saved_tensors
    return *rms_norm_backward(grad_y, None, x, w, scale), None


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, delta, w, _ = inputs
    total, _, scale = output
    ctx.save_for_backward(total, w, scale)
    ctx.dtypes = x.dtype, delta.dtype
    ctx.mark_non_differentiable(scale)
    ctx.set_materialize_grads(False)


def _differentiate_sum(
    ctx: Any, grad_total: Tensor | None, grad_y: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    grad, grad_w = grad_total, None
    if grad_y is not None:
        grad, grad_w = rms_norm_backward(grad_y, grad_total, *ctx.saved_tensors)
    of_x, of_delta = (None if grad is None else grad.to(dtype) for dtype in ctx.dtypes)
    return of_x, of_delta, grad_w, None


rms_norm.register_autograd(_differentiate, setup_context=_save)
add_rms_norm.register_autograd(_differentiate_sum, setup_context=_save_sum)
