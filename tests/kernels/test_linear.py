"""Products with a weight, compiled for few rows, beside torch's."""

import pytest
import torch
import torch.nn.functional as F

from dsv2.kernels.linear import FEW, linear
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32_MODULE, close

SHAPES = [((1, 1), 1), ((1, 16), 16), ((3, 17), 31), ((2, 5, 128), 40), ((7, 129), 16), ((FEW, 300), 70), ((0, 4), 3)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("shape", "outputs"), [*SHAPES, ((FEW + 1, 9), 5)])
def test_values_are_torchs(shape: tuple[int, ...], outputs: int) -> None:
    x, w = normal(*shape), normal(outputs, shape[-1], seed=1)
    with torch.no_grad():
        close(linear(x, w), F.linear(x.double(), w.double()).float(), FLOAT32_MODULE)


@pytest.mark.usefixtures("compiled_ops")
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_a_row_is_bit_for_bit_the_same_alone_and_with_any_number_of_threads(
    shape: tuple[int, ...], outputs: int
) -> None:
    x, w, threads = normal(*shape).flatten(0, -2), normal(outputs, shape[-1], seed=1), torch.get_num_threads()
    with torch.no_grad():
        whole = linear(x, w)
        assert all(torch.equal(linear(x[row : row + 1], w)[0], whole[row]) for row in range(len(x)))
        try:
            torch.set_num_threads(3)
            assert torch.equal(linear(x, w), whole)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.usefixtures("compiled_ops")
def test_inputs_may_lie_apart_in_memory() -> None:
    x, w = normal(4, 12), normal(5, 20, seed=1)
    with torch.no_grad():
        close(linear(x[:, ::2], w[:, 3:9]), x[:, ::2] @ w[:, 3:9].T, FLOAT32_MODULE)


@pytest.mark.usefixtures("compiled_ops")
def test_gradients_are_torchs() -> None:
    x, w = normal(3, 4).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    linear(x, w).square().sum().backward()
    close(x.grad, 2 * (x @ w.T) @ w, FLOAT32_MODULE)
