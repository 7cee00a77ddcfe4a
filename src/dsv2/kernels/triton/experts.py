"""The routed experts as grouped matmuls with SwiGLU and gates inside. Specification: `reference.routed_experts`.

N = tokens x K pairs of a token and an expert, sorted by expert; E experts, d model width, W expert width.

The row of a pair is never copied: the products read it from x, or from the gradient, by the number of its token. Its
gate multiplies the hidden row, so that what comes back needs a plain sum per token, and the gradient of the gate is a
dot product of hidden rows: the experts' outputs are not kept. Kept is what is before the activation, (N, 2W).

    forward     before = x w_gate_up, hidden = gate swiglu(before)     out = sum of hidden w_down
    backward    grad_hidden = grad w_down^T, and through swiglu        grad_x = sum of grad_before w_gate_up^T
                grad_w_down = hidden^T grad                            grad_w_gate_up = x^T grad_before

How many rows an expert has is known on the device only. A table of tiles, made there, gives each program its expert and
rows; it has places for the most tiles there can be, and programs of the unused ones end at once. Neighbouring programs
share rows, then the expert's weights: about ten tiles in each direction run at a time, which the cache serves.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton import permute
from dsv2.kernels.triton.device import capability, interpreted

WIDEN = tl.constexpr(interpreted())  # the interpreter multiplies bfloat16 wrongly
SLOTS = 64  # tiles per program that writes the table


class Blocks(NamedTuple):
    """The part of a product that one program computes."""

    rows: int
    columns: int
    inner: int  # terms of the sum per step
    warps: int
    stages: int


def blocks(dtype: torch.dtype, capability: int, *, two: bool) -> Blocks:
    """Return the blocks for a device; `two` says whether the program holds two products or one and its partners.

    In 16 bits, 128 x 256 sums in float32 are half of what eight warps have in registers, the most that leaves room for
    the rest; steps are as long as the shared memory of the device holds three or four of. Float32 is multiplied
    without tensor cores, in IEEE precision, as torch does by default.
    """
    if dtype == torch.float32:
        return Blocks(64, 32 if two else 64, 32, warps=4, stages=2)
    inner, stages = (64, 4) if capability >= 90 else (32, 4)
    return Blocks(128, 128 if two else 256, inner, warps=8, stages=stages)


@triton.jit
def _list_tiles(counts, tiles, E, slots, ROWS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_S: tl.constexpr):
    """Write expert, first row and end of rows of every tile; expert -1 where there is none."""
    expert = tl.arange(0, BLOCK_E)
    count = tl.load(counts + expert, mask=expert < E, other=0).to(tl.int32)
    first_row = tl.cumsum(count, 0) - count
    needed = (count + ROWS - 1) // ROWS
    first_tile = tl.cumsum(needed, 0) - needed
    slot = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    nth = slot[:, None] - first_tile[None, :]
    mine = (nth >= 0) & (nth < needed[None, :])
    tile = tiles + 3 * slot
    tl.store(tile, tl.sum(tl.where(mine, expert[None, :] + 1, 0), 1) - 1, mask=slot < slots)
    tl.store(tile + 1, tl.sum(tl.where(mine, first_row[None, :] + nth * ROWS, 0), 1), mask=slot < slots)
    tl.store(tile + 2, tl.sum(tl.where(mine, (first_row + count)[None, :], 0), 1), mask=slot < slots)


@triton.jit
def _tile(tiles, column_blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return expert, rows, whether they exist, and columns of this program's tile."""
    tile = tiles + tl.program_id(0) // column_blocks * 3
    expert, first, end = tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 2)
    rows = first + tl.arange(0, ROWS)
    columns = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    return expert, rows.to(tl.int64), rows < end, columns


@triton.jit
def _add_product(total, a, b):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def _product(
    a,
    b,
    exists,
    column_exists,
    length,
    b_step,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """Return a b (ROWS, COLUMNS) from pointers to the first INNER of `length` columns of a and rows of b."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for done in range(0, length, INNER):
        inside = done + tl.arange(0, INNER) < length
        left = tl.load(a, mask=exists[:, None] & inside[None, :], other=0.0)
        right = tl.load(b, mask=inside[:, None] & column_exists[None, :], other=0.0)
        total = _add_product(total, left, right)
        a += INNER
        b += INNER * b_step
    return total


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
    expert, rows, exists, columns = _tile(tiles, column_blocks, ROWS, COLUMNS)
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
        gate = _add_product(gate, left, tl.load(b, mask=right, other=0.0))
        up = _add_product(up, left, tl.load(b + W, mask=right, other=0.0))
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
def _rows(
    a,
    w,
    tiles,
    out,
    length,
    width,
    w_expert,
    w_row,
    w_column,
    column_blocks,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out (N, width) = a (N, length) times each expert's matrix (length, width), of any strides."""
    expert, rows, exists, columns = _tile(tiles, column_blocks, ROWS, COLUMNS)
    if expert < 0:
        return
    k = tl.arange(0, INNER)
    left = a + rows[:, None] * length + k[None, :]
    right = w + expert * w_expert + k[:, None] * w_row + columns[None, :] * w_column
    total = _product(left, right, exists, columns < width, length, w_row, ROWS, COLUMNS, INNER)
    at = out + rows[:, None] * width + columns[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=exists[:, None] & (columns < width)[None, :])


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

    The gradient of a gate is summed over the columns of a tile here, over the tiles (N, column_blocks) elsewhere.
    """
    expert, rows, exists, columns = _tile(tiles, column_blocks, ROWS, COLUMNS)
    if expert < 0:
        return
    token = tl.load(token_of + rows, mask=exists, other=0)
    k = tl.arange(0, INNER)
    a = grad + token[:, None] * d + k[None, :]
    b = w_down + expert * W * d + columns[None, :] * d + k[:, None]
    grad_active = _product(a, b, exists, columns < W, d, 1, ROWS, COLUMNS, INNER)

    weight = tl.load(gate_of + rows, mask=exists, other=0.0).to(tl.float32)
    part = tl.zeros([ROWS], tl.float32)
    left, right = tl.split(tl.permute(tl.reshape(grad_active, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
    first = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS // 2)
    part = _swiglu_backward(left, weight, before, grad_before, hidden, rows, exists, first, W)
    part += _swiglu_backward(right, weight, before, grad_before, hidden, rows, exists, first + COLUMNS // 2, W)
    tl.store(gate_parts + rows * column_blocks + tl.program_id(0) % column_blocks, part, mask=exists)


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
def _weights(
    a,
    b,
    token_of,
    counts,
    out,
    E,
    height,
    width,
    row_blocks,
    column_blocks,
    A_OF_TOKENS: tl.constexpr,
    B_OF_TOKENS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[e] (height, width) = a^T b over the rows of expert e; a or b has a row per token instead of one per pair."""
    tile = tl.program_id(0)
    column = tile % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    row = tile // column_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    expert = tile // column_blocks // row_blocks
    other = tl.arange(0, BLOCK_E)
    count = tl.load(counts + other, mask=other <= expert, other=0).to(tl.int32)
    end = tl.sum(count)
    first = end - tl.sum(tl.where(other == expert, count, 0))
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for done in range(first, end, INNER):
        pair = done + tl.arange(0, INNER)
        exists = pair < end
        token = tl.load(token_of + pair, mask=exists, other=0)
        a_row = token if A_OF_TOKENS else pair.to(tl.int64)
        b_row = token if B_OF_TOKENS else pair.to(tl.int64)
        left = tl.load(
            a + a_row[None, :] * height + row[:, None], mask=exists[None, :] & (row < height)[:, None], other=0.0
        )
        right = tl.load(
            b + b_row[:, None] * width + column[None, :], mask=exists[:, None] & (column < width)[None, :], other=0.0
        )
        total = _add_product(total, left, right)
    at = out + expert.to(tl.int64) * height * width + row[:, None].to(tl.int64) * width + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(row < height)[:, None] & (column < width)[None, :])


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
    hidden = x.new_empty((len(order), width))
    before = x.new_empty((len(order) if differentiable else 0, 2 * width))
    block = blocks(x.dtype, capability(x.device), two=True)
    tiles = _tiles(counts, len(order), block.rows)
    columns = triton.cdiv(width, block.columns)
    _gate_up[(len(tiles) * columns,)](
        x, order // gates.shape[1], gates.flatten()[order], w_gate_up, tiles, before, hidden, dim, width, columns,
        differentiable, **_options(block),
    )
    rows = _grouped(hidden, counts, w_down)
    return permute.sum_rows(rows, None, inverse, gates.shape[1]), before


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
    """Return the gradients of x, gates, w_gate_up and w_down; of no size where a product would not be `wanted`."""
    grad, x, w_gate_up, w_down = grad.contiguous(), x.contiguous(), w_gate_up.contiguous(), w_down.contiguous()
    width, dim = w_down.shape[1:]
    token_of = order // gates.shape[1]
    grad_before, hidden = torch.empty_like(before), x.new_empty((len(order), width))
    block = blocks(x.dtype, capability(x.device), two=True)
    tiles = _tiles(counts, len(order), block.rows)
    columns = triton.cdiv(width, block.columns)
    gate_parts = x.new_empty((len(order), columns), dtype=torch.float32)
    _down_backward[(len(tiles) * columns,)](
        grad, token_of, gates.flatten()[order], w_down, before, tiles, grad_before, hidden, gate_parts, dim, width,
        columns, **_options(block),
    )
    grad_gates = gate_parts.sum(1)[inverse].view(gates.shape).to(gates.dtype)
    grad_x, grad_gate_up, grad_down = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    if wanted[0]:
        grad_x = permute.sum_rows(_grouped(grad_before, counts, w_gate_up.mT), None, inverse, gates.shape[1])
    if wanted[1]:
        grad_gate_up = _of_weights(x, grad_before, token_of, counts, tokens="a")
    if wanted[2]:
        grad_down = _of_weights(hidden, grad, token_of, counts, tokens="b")
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
        part.new_empty(part.shape if needed else 0)
        for part, needed in zip((x, w_gate_up, w_down), wanted, strict=True)
    )
    return of_x, gates.new_empty(gates.shape), of_gate_up, of_down


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    before = output[1]
    ctx.mark_non_differentiable(before)
    ctx.set_materialize_grads(False)  # no zeros for the gradient of `before`
    ctx.save_for_backward(*inputs[:-1], before)


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    wanted = [ctx.needs_input_grad[place] for place in (0, 5, 6)]
    of_x, of_gates, *of_weights = _experts_backward(grad, *ctx.saved_tensors, wanted)
    of_x, *of_weights = (part if needed else None for part, needed in zip((of_x, *of_weights), wanted, strict=True))
    return of_x, of_gates, None, None, None, *of_weights, None


experts.register_autograd(_differentiate, setup_context=_save)


def _options(block: Blocks) -> dict[str, int]:
    sizes = {"ROWS": block.rows, "COLUMNS": block.columns, "INNER": block.inner}
    return {**sizes, "num_warps": block.warps, "num_stages": block.stages}


def _tiles(counts: Tensor, num_rows: int, rows: int) -> Tensor:
    """Return the table of tiles of so many rows, (slots, 3) int32."""
    num_experts = len(counts)
    slots = num_rows // rows + min(num_experts, num_rows)  # each expert with rows has at most one that is not full
    tiles = counts.new_empty((slots, 3), dtype=torch.int32)
    _list_tiles[(triton.cdiv(slots, SLOTS),)](
        counts, tiles, num_experts, slots, ROWS=rows, BLOCK_E=triton.next_power_of_2(num_experts), BLOCK_S=SLOTS
    )
    return tiles


def _grouped(rows: Tensor, counts: Tensor, w: Tensor) -> Tensor:
    """`reference.grouped` of rows (N, I) and w (E, I, O)."""
    width = w.shape[2]
    out = rows.new_empty((len(rows), width))
    block = blocks(rows.dtype, capability(rows.device), two=False)
    tiles = _tiles(counts, len(rows), block.rows)
    columns = triton.cdiv(width, block.columns)
    _rows[(len(tiles) * columns,)](
        rows, w, tiles, out, w.shape[1], width, *w.stride(), columns, **_options(block)
    )
    return out


def _of_weights(a: Tensor, b: Tensor, token_of: Tensor, counts: Tensor, *, tokens: str) -> Tensor:
    """Return a^T b (E, I, O) over the rows of each expert; `tokens` says which of the two has a row per token."""
    num_experts, height, width = len(counts), a.shape[1], b.shape[1]
    out = a.new_empty((num_experts, height, width))
    block = blocks(a.dtype, capability(a.device), two=False)
    row_blocks, column_blocks = triton.cdiv(height, block.rows), triton.cdiv(width, block.columns)
    _weights[(num_experts * row_blocks * column_blocks,)](
        a, b, token_of, counts, out, num_experts, height, width, row_blocks, column_blocks, tokens == "a",
        tokens == "b", triton.next_power_of_2(num_experts), **_options(block),
    )
    return out
