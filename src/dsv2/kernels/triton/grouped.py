"""Grouped matmuls of rows sorted by expert, and the parts that other kernels make theirs of.

N rows, E experts, I input width, O output width. Specification: `reference.grouped`.

How many rows an expert has is known on the device only. A table of tiles, made there, gives each program its expert and
rows; it has places for the most tiles there can be, and programs of the unused ones end at once. Neighbouring programs
share rows, then the expert's weights: with about ten tiles in a row, those that run at a time are about ten by ten.
Where an expert's matrix or a row begins is computed in int64; within a matrix int32 is enough.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton import device

WIDEN = tl.constexpr(device.interpreted())  # the interpreter multiplies bfloat16 wrongly
SLOTS = 16  # tiles per program that writes the table


class Blocks(NamedTuple):
    """The part of a product that one program computes."""

    rows: int
    columns: int
    inner: int  # terms of the sum per step
    warps: int
    stages: int

    @property
    def launch(self) -> dict[str, int]:
        sizes = {"ROWS": self.rows, "COLUMNS": self.columns, "INNER": self.inner}
        return {**sizes, "num_warps": self.warps, "num_stages": self.stages}


def blocks(dtype: torch.dtype, place: torch.device, *, shared: bool = False) -> Blocks:
    """Return the blocks for a device; if `shared`, the program holds about as much again beside this product.

    Blocks of a dtype have as many rows either way, so that one table of tiles serves both.

    In 16 bits a program has 128 x 256 sums, in half the registers of its eight warps, or half as many if they are
    shared. A step of the sum is 128 bytes of each row, and three of them are loaded ahead; on an A100, which has less
    shared memory and takes operands through registers, either the step or the block is halved. Float32 is multiplied
    without tensor cores, in IEEE precision as torch does by default.
    """
    if dtype == torch.float32:
        return Blocks(64, 32 if shared else 64, inner=32, warps=4, stages=2)
    if device.capability(place) >= 90:
        return Blocks(128, 128 if shared else 256, inner=64, warps=8, stages=4)
    return Blocks(128, 64, 64, warps=8, stages=4) if shared else Blocks(128, 256, 32, warps=8, stages=4)


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
def tile_of(tiles, column_blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return expert, rows, whether they exist, and columns of this program's tile."""
    tile = tiles + tl.program_id(0) // column_blocks * 3
    expert, first, end = tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 2)
    rows = first + tl.arange(0, ROWS)
    columns = tl.program_id(0) % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    return expert, rows.to(tl.int64), rows < end, columns


@triton.jit
def add_product(total, a, b):
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def product(
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
        total = add_product(total, left, right)
        a += INNER
        b += INNER * b_step
    return total


@triton.jit
def _multiply(
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
    expert, rows, exists, columns = tile_of(tiles, column_blocks, ROWS, COLUMNS)
    if expert < 0:
        return
    k = tl.arange(0, INNER)
    left = a + rows[:, None] * length + k[None, :]
    right = w + expert * w_expert + k[:, None] * w_row + columns[None, :] * w_column
    total = product(left, right, exists, columns < width, length, w_row, ROWS, COLUMNS, INNER)
    at = out + rows[:, None] * width + columns[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=exists[:, None] & (columns < width)[None, :])


@triton.jit
def _weight_gradient(
    a,
    b,
    token_of,
    counts,
    out,
    height,
    width,
    row_blocks,
    column_blocks,
    TOKENS_IN_A: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[e] (height, width) = a^T b over the rows of expert e; a or b has a row per token instead, by `token_of`."""
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
        a_row, b_row = (token, pair.to(tl.int64)) if TOKENS_IN_A else (pair.to(tl.int64), token)
        a_at = a + a_row[None, :] * height + row[:, None]
        b_at = b + b_row[:, None] * width + column[None, :]
        left = tl.load(a_at, mask=exists[None, :] & (row < height)[:, None], other=0.0)
        right = tl.load(b_at, mask=exists[:, None] & (column < width)[None, :], other=0.0)
        total = add_product(total, left, right)
    at = out + expert.to(tl.int64) * height * width + row[:, None].to(tl.int64) * width + column[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(row < height)[:, None] & (column < width)[None, :])


def tiles(counts: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """Return the table of tiles: expert, first row, and end of the expert's rows, (slots, 3) int32."""
    num_experts, height = len(counts), blocks(dtype, counts.device).rows
    slots = num_rows // height + min(num_experts, num_rows)  # an expert has at most one tile that is not full
    table = counts.new_empty((slots, 3), dtype=torch.int32)
    block = triton.next_power_of_2(num_experts)
    _list_tiles[(triton.cdiv(slots, SLOTS),)](
        *(counts, table, num_experts, slots), ROWS=height, BLOCK_E=block, BLOCK_S=SLOTS
    )
    return table


def multiply(rows: Tensor, table: Tensor, w: Tensor) -> Tensor:
    """Multiply contiguous rows (N, I), in the tiles of a table, by w (E, I, O), of any strides: (N, O)."""
    width = w.shape[2]
    out = rows.new_empty((len(rows), width))
    block = blocks(rows.dtype, rows.device)
    across = triton.cdiv(width, block.columns)
    _multiply[(len(table) * across,)](*(rows, w, table, out, rows.shape[1], width, *w.stride(), across), **block.launch)
    return out


def weight_gradient(a: Tensor, b: Tensor, token_of: Tensor, counts: Tensor, *, tokens_in_a: bool) -> Tensor:
    """Return a^T b over the rows of each expert, (E, I, O), from a (., I) and b (., O), both contiguous.

    One of the two has a row per token, which is read by `token_of` (N,), the other a row per pair. Half of the stages
    go into reading those numbers ahead of the rows.
    """
    num_experts, height, width = len(counts), a.shape[1], b.shape[1]
    out = a.new_empty((num_experts, height, width))
    block = blocks(a.dtype, a.device)
    block = block._replace(stages=2 * block.stages)
    down, across = triton.cdiv(height, block.rows), triton.cdiv(width, block.columns)
    _weight_gradient[(num_experts * down * across,)](
        *(a, b, token_of, counts, out, height, width, down, across),
        TOKENS_IN_A=tokens_in_a,
        BLOCK_E=triton.next_power_of_2(num_experts),
        **block.launch,
    )
    return out
