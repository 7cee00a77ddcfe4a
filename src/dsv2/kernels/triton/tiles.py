"""Tiles of matrices, padded to what tensor cores take: sides that are powers of two, of at least 16."""

import triton
import triton.language as tl

from dsv2.kernels.triton.device import interpreted

INTERPRETED = tl.constexpr(interpreted())
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def padded(width: int) -> int:
    """Return the side of a tile that holds `width` channels."""
    return max(triton.next_power_of_2(width), 16)


@triton.jit
def tile(matrix, first, num_rows, stride, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Return pointers to rows `first` and following, (ROWS, padded(WIDTH)), and a mask of those that are in the matrix.

    The offset of the first row is computed in int64, those within the tile in int32.
    """
    rows, columns = tl.arange(0, ROWS)[:, None], tl.arange(0, padded(WIDTH))[None, :]
    pointers = matrix + tl.cast(first, tl.int64) * stride + rows * stride + columns
    return pointers, (rows < num_rows - first) & (columns < WIDTH)


@triton.jit
def load_tile(matrix, first, num_rows, stride, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Load rows `first` and following of a matrix (num_rows, WIDTH), with 0 in padding."""
    pointers, inside = tile(matrix, first, num_rows, stride, WIDTH, ROWS)
    return exact(tl.load(pointers, inside, other=0.0))


@triton.jit
def store_tile(matrix, x, first, num_rows, stride, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Store a tile in rows `first` and following of a matrix (num_rows, WIDTH), without padding."""
    pointers, inside = tile(matrix, first, num_rows, stride, WIDTH, ROWS)
    tl.store(pointers, x.to(matrix.dtype.element_ty), inside)


@triton.jit
def exact(x):
    """Return x, in float32 when interpreted: the interpreter computes bfloat16 wrongly, and without a warning."""
    if INTERPRETED:
        x = x.to(tl.float32)
    return x


@triton.jit
def dot(a, b, sums):
    """Return a @ b + sums, accumulated in float32; float32 inputs are not rounded to TF32."""
    return tl.dot(a, b, sums, input_precision="ieee", out_dtype=tl.float32)
