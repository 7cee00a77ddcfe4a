"""SwiGLU's elementwise part. Specification: `reference.swiglu`.

N rows, W width. Bound by memory: each element is read and written once, the gradient from the input alone. Computed in
float32 with one rounding at the end, where plain torch in half precision also rounds silu(gate).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.layout import rows


@triton.jit
def _forward(gate_up, stride, y, N, W, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, column, mask = _tile(N, W, ROWS, BLOCK)
    gate = tl.load(gate_up + row * stride + column, mask, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + W + column, mask, 0.0).to(tl.float32)
    tl.store(y + row * W + column, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask)


@triton.jit
def _backward(grad_y, grad_stride, gate_up, stride, grad, N, W, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, column, mask = _tile(N, W, ROWS, BLOCK)
    gate = tl.load(gate_up + row * stride + column, mask, 0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + W + column, mask, 0.0).to(tl.float32)
    given = tl.load(grad_y + row * grad_stride + column, mask, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    grad_gate = given * up * sigmoid * (1 + gate * (1 - sigmoid))
    grad_up = given * gate * sigmoid
    tl.store(grad + row * 2 * W + column, grad_gate.to(grad.dtype.element_ty), mask)
    tl.store(grad + row * 2 * W + W + column, grad_up.to(grad.dtype.element_ty), mask)


@triton.jit
def _tile(N, W, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows, columns and mask of a program; programs of the same rows are neighbours."""
    across = tl.cdiv(W, BLOCK)
    row = (tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)[None, :]
    return row, column, (row < N) & (column < W)


def _launch(count: int, W: int) -> tuple[tuple[int], dict[str, int]]:
    """Return grid and options: 1024 elements in a program, 8 in each thread, which are 16 bytes of half precision."""
    block = min(triton.next_power_of_2(W), 1024)
    height = 1024 // block
    return (triton.cdiv(count, height) * triton.cdiv(W, block),), {"ROWS": height, "BLOCK": block, "num_warps": 4}


@torch.library.custom_op("dsv2_triton::swiglu", mutates_args=())
def swiglu(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, (..., W), from gate and up concatenated, (..., 2W)."""
    y = torch.empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2), dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        read, W = rows(gate_up), y.shape[-1]
        grid, options = _launch(len(read), W)
        _forward[grid](read, read.stride(0), y, len(read), W, **options)
    return y


@torch.library.custom_op("dsv2_triton::swiglu_backward", mutates_args=())
def swiglu_backward(grad_y: Tensor, gate_up: Tensor) -> Tensor:
    """Return the gradient of gate and up, (..., 2W), from that of the product, (..., W)."""
    grad = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    if grad.numel():
        given, read, W = rows(grad_y), rows(gate_up), grad_y.shape[-1]
        grid, options = _launch(len(read), W)
        _backward[grid](given, given.stride(0), read, read.stride(0), grad, len(read), W, **options)
    return grad


@swiglu.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@swiglu_backward.register_fake
def _(grad_y: Tensor, gate_up: Tensor) -> Tensor:
    return torch.empty_like(gate_up, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_y: Tensor) -> Tensor:
    return swiglu_backward(grad_y, *ctx.saved_tensors)


swiglu.register_autograd(_differentiate, setup_context=_save)
