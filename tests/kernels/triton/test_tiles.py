"""Tiles of a matrix: padding, and rows further than an int32 reaches.

Kernels of tests become so within the tests, where `triton_ops` has them interpreted.
"""

import pytest
import torch
import triton
import triton.language as tl

from dsv2.kernels.triton.tiles import dot, load_tile, padded, store_tile
from tests.references.fences import DEVICE, fenced, fenced_empty
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32, close

pytestmark = pytest.mark.usefixtures("triton_ops")


def _copy(source, target, first, num_rows, stride, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    x = load_tile(source, first, num_rows, stride, WIDTH, ROWS)
    store_tile(target, x, 0, num_rows - first, WIDTH, WIDTH, ROWS)


def _product(a, b, out, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    rows, columns = load_tile(a, 0, ROWS, WIDTH, WIDTH, ROWS), load_tile(b, 0, ROWS, WIDTH, WIDTH, ROWS)
    sums = dot(rows, tl.trans(columns), tl.zeros((ROWS, ROWS), tl.float32))
    store_tile(out, sums, 0, ROWS, ROWS, ROWS, ROWS)


def test_sides_are_powers_of_two_of_at_least_16() -> None:
    assert [int(padded(width)) for width in (0, 1, 16, 17, 64, 65, 512)] == [16, 16, 16, 32, 64, 128, 512]


@pytest.mark.parametrize("width", [1, 5, 16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_rows_are_read_and_written_without_what_surrounds_them(width: int, dtype: torch.dtype) -> None:
    x = fenced((normal(21, width) * 50).to(dtype))
    copy = fenced_empty((4, width), torch.float32, DEVICE)
    triton.jit(_copy)[(1,)](x, copy, 17, 21, width, WIDTH=width, ROWS=16)
    assert torch.equal(copy, x[17:].float())


def test_rows_beyond_two_to_the_31_are_found() -> None:
    """The memory is asked for but not touched, except in its last rows."""
    width, rows = 16, 2**27 + 3
    x = torch.empty_strided((rows, width), (width, 1), dtype=torch.int8, device=DEVICE)
    x[-3:] = 5
    copy = fenced_empty((3, width), torch.int8, DEVICE)
    triton.jit(_copy)[(1,)](x, copy, rows - 3, rows, width, WIDTH=width, ROWS=16)
    assert torch.equal(copy, torch.full_like(copy, 5))


def test_products_of_float32_are_not_rounded_to_less() -> None:
    """TF32 keeps 10 bits of 1 + 2^-12."""
    a, b = torch.full((16, 16), 1 + 2**-12, device=DEVICE), torch.eye(16, device=DEVICE)
    out = fenced_empty((16, 16), torch.float32, DEVICE)
    triton.jit(_product)[(1,)](a, b, out, WIDTH=16, ROWS=16)
    assert torch.equal(out, a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_of_halves_are_summed_in_float32(dtype: torch.dtype) -> None:
    a, b = normal(16, 64).to(dtype).to(DEVICE), normal(16, 64, seed=1).to(dtype).to(DEVICE)
    out = fenced_empty((16, 16), torch.float32, DEVICE)
    triton.jit(_product)[(1,)](a, b, out, WIDTH=64, ROWS=16)
    close(out, a.float() @ b.float().T, FLOAT32)
