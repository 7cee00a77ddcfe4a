"""Grouped products in Triton beside their specification, and the table of their tiles."""

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.triton import grouped
from tests.references.fences import DEVICE, fenced, reserved
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32_MODULE, close

pytestmark = pytest.mark.usefixtures("triton_ops")

COUNTS = [[4], [0, 3, 0, 5], [0, 0, 9], [7, 0], [0, 0], [1, 65, 64]]
WIDTHS = [(8, 12), (1, 1), (70, 65)]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("width_in", "width_out"), WIDTHS)
def test_each_block_of_rows_meets_its_own_matrix(counts: list[int], width_in: int, width_out: int) -> None:
    """Also one that lies in memory column by column, as in the gradient of the rows."""
    sizes, rows = fenced(torch.tensor(counts)), fenced(normal(sum(counts), width_in))
    w = fenced(normal(len(counts), width_in, width_out, seed=1))
    expected, tiles = reference.grouped(rows, sizes, w), grouped.tiles(sizes, sum(counts), rows.dtype)
    for strided in (w, fenced(w.mT).mT):
        close(grouped.multiply(rows, tiles, strided), expected, FLOAT32_MODULE)


@pytest.mark.parametrize("tokens_in_a", [False, True])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("height", "width"), WIDTHS)
def test_the_gradient_of_a_matrix_is_a_product_of_its_experts_rows(
    counts: list[int], height: int, width: int, tokens_in_a: bool
) -> None:
    """Of zeros for an expert without rows. One side is read by the numbers of tokens, here of 5 in turn."""
    sizes, token_of = fenced(torch.tensor(counts)), fenced(torch.arange(sum(counts)) * 3 % 5)
    a = normal(5 if tokens_in_a else sum(counts), height)
    b = normal(sum(counts) if tokens_in_a else 5, width, seed=1)
    product = grouped.weight_gradient(fenced(a), fenced(b), token_of, sizes, tokens_in_a=tokens_in_a)
    a, b = (a[token_of.cpu()], b) if tokens_in_a else (a, b[token_of.cpu()])
    expected = torch.stack([x.T @ y for x, y in zip(a.split(counts), b.split(counts), strict=True)])
    close(product, expected.to(DEVICE), FLOAT32_MODULE)


@pytest.mark.parametrize("counts", [*COUNTS, [1, 64, 129], [128, 0, 64], [1] * 70])
def test_the_table_lists_each_tile_once(counts: list[int]) -> None:
    table = grouped.tiles(fenced(torch.tensor(counts)), sum(counts), torch.float32).tolist()
    expected = []
    for expert, count in enumerate(counts):
        first = sum(counts[:expert])
        expected += [[expert, row, first + count] for row in range(first, first + count, 64)]
    assert table[: len(expected)] == expected
    assert all(tile[0] == -1 for tile in table[len(expected) :])


def test_offsets_beyond_int32_are_computed_in_int64() -> None:
    """Of the third matrix, each 2^30 elements behind the one before, in memory that is reserved and hardly used."""
    w = reserved(2**31 + 256, dtype=torch.float16).as_strided((3, 16, 16), (2**30, 16, 1))
    w[2] = normal(16, 16).half()
    rows = normal(3, 16, seed=1).half().to(DEVICE)
    tiles = grouped.tiles(torch.tensor([0, 0, 3], device=DEVICE), 3, rows.dtype)
    close(grouped.multiply(rows, tiles, w).float(), rows.float() @ w[2].float(), 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("capability", [80, 90])
def test_blocks_are_large_enough_for_tensor_cores(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shared: bool, capability: int
) -> None:
    monkeypatch.setattr(grouped.device, "capability", lambda place: capability)
    block = grouped.blocks(dtype, DEVICE, shared=shared)
    assert min(block.rows, block.columns // 2, block.inner) >= 16
