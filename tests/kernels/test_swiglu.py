"""SwiGLU's elementwise part beside its specification."""

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.swiglu import swiglu
from tests.references.kernels import agrees, normal
from tests.references.tolerances import FLOAT64

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 14), (2, 64), (6,), (0, 4)])
def test_values_and_gradients_are_those_of_the_specification(shape: tuple[int, ...]) -> None:
    agrees(swiglu, reference.swiglu, normal(*shape))


def test_float64_stays_float64() -> None:
    agrees(swiglu, reference.swiglu, normal(3, 10, dtype=torch.float64), tolerance=FLOAT64)


def test_large_gates_neither_overflow_nor_lose_their_gradient() -> None:
    """silu(z) is z far to the right of 0 and 0 far to the left."""
    agrees(swiglu, reference.swiglu, torch.tensor([[100.0, -100.0, 2.0, 3.0]]))
    assert swiglu(torch.tensor([[100.0, -100.0, 2.0, 3.0]])).tolist() == [[200.0, 0.0]]


def test_the_input_is_left_as_it_was() -> None:
    """The product is formed in place, in memory of its own."""
    gate_up = normal(3, 8)
    before = gate_up.clone()
    swiglu(gate_up)
    assert torch.equal(gate_up, before)
