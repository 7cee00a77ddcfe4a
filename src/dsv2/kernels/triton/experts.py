"""The routed experts as grouped matmuls with SwiGLU and gates inside. Specification: `reference.routed_experts`.

N = tokens x K pairs of a token and an expert, sorted by expert; E experts, d model width, W expert width.

    forward     before = x w_gate_up, hidden = gate swiglu(before)     out = sum of hidden w_down
    backward    grad_hidden = grad w_down^T, and through swiglu        grad_x = sum of grad_before w_gate_up^T
                grad_w_down = hidden^T grad                            grad_w_gate_up = x^T grad_before

The row of a pair is never copied: the products read it from x, or from the gradient, by the number of its token. Its
gate multiplies the hidden row, so that what comes back needs a plain sum per token, and the gradient of the gate is a
dot product of hidden rows: the experts' outputs are not kept. Kept is what is before the activation, (N, 2W).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton import grouped
from dsv2.kernels.triton.grouped import add_product, product, tile_of
from dsv2.kernels.triton.permute import sum_rows


@triton.jit
def _gate_up(
    x,
    token_of,
    gate_of,
    w,
    tiles,
    before,
    hidden,
    d,
    W,
    column_blocks,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """hidden = gate swiglu(x w), and x w if it is to be kept. Two products share the rows of x."""
    expert, rows, exists, columns = tile_of(tiles, column_blocks, ROWS, COLUMNS)
    if expert < 0:
        return
    column_exists = columns < W
    token = tl.load(token_of + rows, mask=exists, other=0)
    k = tl.arange(0, INNER)
    a = x + token[:, None] * d + k[None, :]
    b = w + expert * d * (2 * W) + k[:, None] * (2 * W) + columns[None, :]
    gate = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for done in range(0, d, INNER):
        inside = done + k < d
        left = tl.load(a, mask=exists[:, None] & inside[None, :], other=0.0)
        right = inside[:, None] & column_exists[None, :]
        gate = add_product(gate, left, tl.load(b, mask=right, other=0.0))
        up = add_product(up, left, tl.load(b + W, mask=right, other=0.0))
        a += INNER
        b += INNER * (2 * W)
    inside = exists[:, None] & column_exists[None, :]
    if KEEP:
        kept = before + rows[:, None] * (2 * W) + columns[None, :]
        tl.store(kept, gate.to(before.dtype.element_ty), mask=inside)
        tl.store(kept + W, up.to(before.dtype.element_ty), mask=inside)
    weight = tl.load(gate_of + rows, mask=exists, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up * weight[:, None]
    tl.store(hidden + rows[:, None] * W + columns[None, :], out.to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(grad_active, weight, before, grad_before, hidden, rows, exists, columns, W):
    """Write the gradient before the activation, and hidden; return that of the gates, summed over these columns."""
    inside = exists[:, None] & (columns < W)[None, :]
    at = rows[:, None] * (2 * W) + columns[None, :]
    gate = tl.load(before + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(before + at + W, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    part = tl.sum(grad_active * silu * up, 1)
    active = silu * up * weight[:, None]
    tl.store(hidden + rows[:, None] * W + columns[None, :], active.to(hidden.dtype.element_ty), mask=inside)
    grad_active *= weight[:, None]
    grad_up = grad_active * silu
    tl.store(grad_before + at + W, grad_up.to(grad_before.dtype.element_ty), mask=inside)
    grad_gate = grad_active * up * (sigmoid + silu * (1 - sigmoid))
    tl.store(grad_before + at, grad_gate.to(grad_before.dtype.element_ty), mask=inside)
    return part


@triton.jit
def _down_backward(
    grad,
    token_of,
    gate_of,
    w_down,
    before,
    tiles,
    grad_before,
    hidden,
    gate_parts,
    d,
    W,
    column_blocks,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """From the gradient of the output to that before the activation; hidden once more, for the gradient of w_down.

    The gradient of a gate is summed over the columns of a tile here, over the tiles (N, column_blocks) elsewhere. What
    follows the product takes a half of the columns at a time: all of them would not fit into registers.
    """
    expert, rows, exists, columns = tile_of(tiles, column_blocks, ROWS, COLUMNS)
    if expert < 0:
        return
    token = tl.load(token_of + rows, mask=exists, other=0)
    k = tl.arange(0, INNER)
    a = grad + token[:, None] * d + k[None, :]
    b = w_down + expert * W * d + columns[None, :] * d + k[:, None]
    grad_active = product(a, b, exists, columns < W, d, 1, ROWS, COLUMNS, INNER)

    weight = tl.load(gate_of + rows, mask=exists, other=0.0).to(tl.float32)
    left, right = tl.split(tl.permute(tl.reshape(grad_active, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
    column = tl.program_id(0) % column_blocks
    first = column * COLUMNS + tl.arange(0, COLUMNS // 2)
    part = _swiglu_backward(left, weight, before, grad_before, hidden, rows, exists, first, W)
    part += _swiglu_backward(right, weight, before, grad_before, hidden, rows, exists, first + COLUMNS // 2, W)
    tl.store(gate_parts + rows * column_blocks + column, part, mask=exists)


@torch.library.custom_op("dsv2_triton::experts", mutates_args=())
def experts(
    x: Tensor,
    gates: Tensor,
    order: Tensor,
    inverse: Tensor,
    counts: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    differentiable: bool,
) -> tuple[Tensor, Tensor]:
    """`routed_experts` of x (tokens, d), with gates (tokens, K) and `sort_by_expert` of the choices.

    Also returns what is before the activation, (N, 2W), if it is to be differentiable.
    """
    x, w_gate_up, w_down = x.contiguous(), w_gate_up.contiguous(), w_down.contiguous()
    width, dim = w_down.shape[1:]
    top_k = gates.shape[1]
    hidden = x.new_empty((len(order), width))
    before = x.new_empty((len(order) if differentiable else 0, 2 * width))
    block = grouped.blocks(x.dtype, x.device, shared=True)
    tiles = grouped.tiles(counts, len(order), x.dtype)
    across = triton.cdiv(width, block.columns)
    _gate_up[(len(tiles) * across,)](
        *(x, order // top_k, gates.flatten()[order], w_gate_up, tiles, before, hidden, dim, width, across),
        KEEP=differentiable,
        **block.launch,
    )
    return sum_rows(grouped.multiply(hidden, tiles, w_down), None, inverse, top_k), before


@experts.register_fake
def _(
    x: Tensor,
    gates: Tensor,
    order: Tensor,
    inverse: Tensor,
    counts: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    differentiable: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((len(order) if differentiable else 0, w_gate_up.shape[2]))


@torch.library.custom_op("dsv2_triton::experts_backward", mutates_args=())
def _experts_backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    order: Tensor,
    inverse: Tensor,
    counts: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    before: Tensor,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, gates, w_gate_up and w_down; those of matrices and x only if `wanted`, else empty."""
    grad, x, w_gate_up, w_down = grad.contiguous(), x.contiguous(), w_gate_up.contiguous(), w_down.contiguous()
    width, dim = w_down.shape[1:]
    top_k = gates.shape[1]
    token_of = order // top_k
    grad_before, hidden = torch.empty_like(before), x.new_empty((len(order), width))
    block = grouped.blocks(x.dtype, x.device, shared=True)
    tiles = grouped.tiles(counts, len(order), x.dtype)
    across = triton.cdiv(width, block.columns)
    gate_parts = x.new_empty((len(order), across), dtype=torch.float32)
    _down_backward[(len(tiles) * across,)](
        *(grad, token_of, gates.flatten()[order], w_down, before, tiles, grad_before, hidden, gate_parts),
        *(dim, width, across),
        **block.launch,
    )
    grad_gates = gate_parts.sum(1)[inverse].view(gates.shape).to(gates.dtype)
    grad_x, grad_gate_up, grad_down = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if wanted[0]:
        grad_x = sum_rows(grouped.multiply(grad_before, tiles, w_gate_up.mT), None, inverse, top_k)
    if wanted[1]:
        grad_gate_up = grouped.weight_gradient(x, grad_before, token_of, counts, tokens_in_a=True)
    if wanted[2]:
        grad_down = grouped.weight_gradient(hidden, grad, token_of, counts, tokens_in_a=False)
    return grad_x, grad_gates, grad_gate_up, grad_down


@_experts_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    order: Tensor,
    inverse: Tensor,
    counts: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    before: Tensor,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_x, of_gate_up, of_down = (
        part.new_empty(part.shape if needed else 0) for part, needed in zip((x, w_gate_up, w_down), wanted, strict=True)
    )
    return of_x, gates.new_empty(gates.shape), of_gate_up, of_down


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    before = output[1]
    ctx.mark_non_differentiable(before)
    ctx.set_materialize_grads(False)  # no zeros for the gradient of `before`
    ctx.save_for_backward(*inputs[:-1], before)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    wanted = [ctx.needs_input_grad[place] for place in (0, 5, 6)]
    of_x, of_gates, *of_weights = _experts_backward(grad, *ctx.saved_tensors, wanted)
    of_x, *of_weights = (part if needed else None for part, needed in zip((of_x, *of_weights), wanted, strict=True))
    return of_x, of_gates, None, None, None, *of_weights, None


experts.register_autograd(_differentiate, setup_context=_save)
