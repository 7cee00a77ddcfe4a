"""Rows of tokens to their experts and back. Specifications: `reference.sort_by_expert`, `gather_rows`, `weighted_sum`.

N = tokens x K pairs of a token and an expert, E experts, d width. A row has one writer and no sum is atomic, so that
results repeat. Sums are in float32 and rounded once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096  # of a program's block: 32 per thread, four vectors of 16 bytes in bfloat16
CHOICES = 8192  # pairs x experts of a program that sorts: 64 numbers per thread


@triton.jit
def _choices(experts, N, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr):
    """Return this program's pairs (BLOCK_N,) and which expert each chose, (BLOCK_N, BLOCK_E) of 0 and 1."""
    pair = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    chosen = tl.load(experts + pair, mask=pair < N, other=-1)
    return pair, (chosen[:, None] == tl.arange(0, BLOCK_E)[None, :]).to(tl.int32)


@triton.jit
def _count(experts, counts, N, E, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr):
    """Count the pairs of each expert in each block: (blocks, E)."""
    _, one_hot = _choices(experts, N, BLOCK_N, BLOCK_E)
    expert = tl.arange(0, BLOCK_E)
    tl.store(counts + tl.program_id(0) * E + expert, tl.sum(one_hot, 0), mask=expert < E)


@triton.jit
def _place(experts, starts, order, inverse, N, E, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr):
    """Give each pair its place, from where the pairs of each block and expert start, (blocks, E)."""
    pair, one_hot = _choices(experts, N, BLOCK_N, BLOCK_E)
    expert = tl.arange(0, BLOCK_E)
    start = tl.load(starts + tl.program_id(0) * E + expert, mask=expert < E, other=0)
    place = tl.sum(one_hot * (start[None, :] + tl.cumsum(one_hot, 0) - 1), 1)
    tl.store(order + place, pair, mask=pair < N)
    tl.store(inverse + pair, place, mask=pair < N)


@triton.jit
def _spread(
    x,
    order,
    gates,
    y,
    out,
    grad_gates,
    N,
    d,
    K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Copy to row n of out the row of x of its token. Weighted: times its gate, whose gradient is their dot product
    with row n of y."""
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    exists = row < N
    pair = tl.load(order + row, mask=exists, other=0)
    token = pair // K
    if WEIGHTED:
        gate = tl.load(gates + pair, mask=exists, other=0.0).to(tl.float32)
        products = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, d, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        inside = exists[:, None] & (column < d)[None, :]
        values = tl.load(x + token[:, None] * d + column[None, :], mask=inside, other=0.0)
        at = row[:, None] * d + column[None, :]
        if WEIGHTED:
            wide = values.to(tl.float32)
            products += wide * tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
            values = (wide * gate[:, None]).to(values.dtype)
        tl.store(out + at, values, mask=inside)
    if WEIGHTED:
        tl.store(grad_gates + pair, tl.sum(products, 1), mask=exists)


@triton.jit
def _collect(
    rows,
    inverse,
    gates,
    out,
    tokens,
    d,
    K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum the K rows of each token, weighted by its gates or not."""
    token = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists = token < tokens
    inside = exists[:, None] & (column < d)[None, :]
    total = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for k in range(K):
        row = tl.load(inverse + token * K + k, mask=exists, other=0)
        values = tl.load(rows + row[:, None] * d + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            values *= tl.load(gates + token * K + k, mask=exists, other=0.0).to(tl.float32)[:, None]
        total += values
    tl.store(out + token[:, None] * d + column[None, :], total.to(out.dtype.element_ty), mask=inside)


def _blocks(width: int) -> tuple[int, int]:
    """Return rows and columns of a program's block."""
    columns = min(triton.next_power_of_2(width), 1024)
    return ELEMENTS // columns, columns


@torch.library.custom_op("dsv2_triton::sort_by_expert", mutates_args=())
def sort_by_expert(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """A stable counting sort: count per block, add up the counts before each block, then place every pair."""
    experts = experts.contiguous()
    block_e = triton.next_power_of_2(num_experts)
    sizes = {"BLOCK_N": max(CHOICES // block_e, 16), "BLOCK_E": block_e}
    blocks = triton.cdiv(experts.numel(), sizes["BLOCK_N"])
    in_block = experts.new_empty((blocks, num_experts), dtype=torch.int32)
    _count[(blocks,)](experts, in_block, experts.numel(), num_experts, **sizes)
    counts = in_block.sum(0)
    starts = (in_block.cumsum(0) - in_block + (counts.cumsum(0) - counts)).int()
    order, inverse = torch.empty_like(experts), torch.empty_like(experts)
    _place[(blocks,)](experts, starts, order, inverse, experts.numel(), num_experts, **sizes)
    return order, inverse, counts


@sort_by_expert.register_fake
def _(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    return experts.new_empty(experts.shape), experts.new_empty(experts.shape), experts.new_empty(num_experts)


@torch.library.custom_op("dsv2_triton::gather_rows", mutates_args=())
def gather_rows(x: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
    out = x.new_empty((len(order), x.shape[1]))
    rows, columns = _blocks(x.shape[1])
    grid = (triton.cdiv(len(order), rows),)
    _spread[grid](x.contiguous(), order, None, None, out, None, *out.shape, top_k, False, BLOCK_N=rows, BLOCK_D=columns)
    return out


@gather_rows.register_fake
def _(x: Tensor, order: Tensor, inverse: Tensor, top_k: int) -> Tensor:
    return x.new_empty((len(order), x.shape[1]))


@torch.library.custom_op("dsv2_triton::sum_rows", mutates_args=())
def sum_rows(rows: Tensor, gates: Tensor | None, inverse: Tensor, top_k: int) -> Tensor:
    """Sum the K rows of each token: (tokens, d). Weighted by gates (tokens, K), if there are any."""
    out = rows.new_empty((len(inverse) // top_k, rows.shape[1]))
    block, columns = _blocks(rows.shape[1])
    grid = (triton.cdiv(len(out), block), triton.cdiv(rows.shape[1], columns))
    weights = None if gates is None else gates.contiguous()
    _collect[grid](
        rows.contiguous(), inverse, weights, out, *out.shape, top_k, gates is not None, BLOCK_T=block, BLOCK_D=columns
    )
    return out


@sum_rows.register_fake
def _(rows: Tensor, gates: Tensor | None, inverse: Tensor, top_k: int) -> Tensor:
    return rows.new_empty((len(inverse) // top_k, rows.shape[1]))


@torch.library.custom_op("dsv2_triton::weighted_sum", mutates_args=())
def weighted_sum(rows: Tensor, gates: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return sum_rows(rows, gates, inverse, gates.shape[1])


@weighted_sum.register_fake
def _(rows: Tensor, gates: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    return rows.new_empty((len(gates), rows.shape[1]))


@torch.library.custom_op("dsv2_triton::weighted_sum_backward", mutates_args=())
def _weighted_sum_backward(grad: Tensor, rows: Tensor, gates: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    rows, gates = rows.contiguous(), gates.contiguous()
    grad_rows, grad_gates = torch.empty_like(rows), torch.empty_like(gates)
    block, columns = _blocks(rows.shape[1])
    _spread[(triton.cdiv(len(rows), block),)](
        grad.contiguous(),
        order,
        gates,
        rows,
        grad_rows,
        grad_gates,
        *rows.shape,
        gates.shape[1],
        True,
        BLOCK_N=block,
        BLOCK_D=columns,
    )
    return grad_rows, grad_gates


@_weighted_sum_backward.register_fake
def _(grad: Tensor, rows: Tensor, gates: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), gates.new_empty(gates.shape)


def _keep_places(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, inverse, ctx.top_k = inputs
    ctx.save_for_backward(inverse)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return sum_rows(grad, None, *ctx.saved_tensors, ctx.top_k), None, None, None


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, gates, order, _ = inputs
    ctx.save_for_backward(rows, gates, order)


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_weighted_sum_backward(grad, *ctx.saved_tensors), None, None


gather_rows.register_autograd(_gather_backward, setup_context=_keep_places)
weighted_sum.register_autograd(_sum_backward, setup_context=_keep_rows)
