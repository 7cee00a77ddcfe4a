"""Grouped products beside their specification: values and both gradients, aligned widths and others, empty blocks."""

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.grouped import grouped
from tests.references.kernels import agrees, normal
from tests.references.tolerances import FLOAT64, close


@pytest.mark.parametrize("counts", [[4], [0, 3, 0, 5], [1, 1, 1], [0, 0, 9], [7, 0], [0, 0]])
@pytest.mark.parametrize(("width_in", "width_out"), [(8, 12), (7, 5), (4, 4), (8, 5), (7, 12)])
def test_each_block_meets_its_own_matrix(counts: list[int], width_in: int, width_out: int) -> None:
    """Multiples of 16 bytes take torch's grouped product, other widths and no rows at all the reference."""
    w, sizes = normal(len(counts), width_in, width_out, seed=1), torch.tensor(counts)
    rows = normal(sum(counts), width_in)
    agrees(lambda x, w: grouped(x, sizes, w), lambda x, w: reference.grouped(x, sizes, w), rows, w)


@pytest.mark.parametrize(("width_in", "width_out"), [(8, 12), (7, 5)])
def test_no_rows_have_gradients(width_in: int, width_out: int) -> None:
    """Of a sum, whose gradient has no strides of its own: none for the rows, zeros for every matrix."""
    rows, w = torch.zeros(0, width_in, requires_grad=True), normal(2, width_in, width_out).requires_grad_()
    grouped(rows, torch.tensor([0, 0]), w).sum().backward()
    assert rows.grad.shape == (0, width_in)
    assert w.grad.shape == w.shape
    assert not w.grad.any()


def test_bfloat16_rounds_only_inputs_and_result() -> None:
    counts, rows, w = torch.tensor([3, 5]), normal(8, 16).bfloat16(), normal(2, 16, 8, seed=1).bfloat16()
    exact = reference.grouped(rows.double(), counts, w.double())
    product = grouped(rows, counts, w)
    assert product.dtype == torch.bfloat16
    close(product.double(), exact, 2**-8)  # bfloat16 keeps 8 bits


def test_float64_stays_float64() -> None:
    """torch's grouped product takes none, so these take the reference."""
    counts, rows, w = torch.tensor([3, 5]), normal(8, 16, dtype=torch.float64), normal(2, 16, 8, dtype=torch.float64)
    product = grouped(rows, counts, w)
    assert product.dtype == torch.float64
    close(product, torch.cat([rows[:3] @ w[0], rows[3:] @ w[1]]), FLOAT64)


@pytest.mark.parametrize("needed", ["rows", "w"])
def test_only_gradients_that_are_asked_for_are_computed(needed: str) -> None:
    """Frozen experts, or rows that need none, cost one product less and change nothing."""
    counts = torch.tensor([3, 0, 5])
    leaves = {"rows": normal(8, 4), "w": normal(3, 4, 8, seed=1)}
    leaves[needed].requires_grad_()
    grouped(leaves["rows"], counts, leaves["w"]).square().sum().backward()
    twin = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    reference.grouped(twin["rows"], counts, twin["w"]).square().sum().backward()
    for name, leaf in leaves.items():
        if name == needed:
            close(leaf.grad, twin[name].grad, 3e-6)
        else:
            assert leaf.grad is None
