"""RMSNorm against its equation."""

import pytest
import torch

from dsv2.models.norm import RMSNorm
from tests import references
from tests.references.tolerances import FLOAT32, close, same_values_and_gradients


@pytest.mark.parametrize("eps", [1e-6, 1e-5, 1e-2])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (3, 2, 8), (2, 3, 4, 6)])
def test_values_and_gradients_are_those_of_a_loop(shape: tuple[int, ...], eps: float) -> None:
    norm = references.randomise(RMSNorm(shape[-1], eps).double(), seed=1)
    leaves = {"x": references.random(*shape, seed=2), "w": norm.w}
    own = references.twin(leaves)
    same_values_and_gradients(norm(leaves["x"]), references.rms_norm(own["x"], own["w"], eps), leaves, own, FLOAT32)


def test_epsilon_is_added_to_the_mean_square() -> None:
    """With a mean square of epsilon the result is 1 / sqrt(2): outside the root, or on the norm, it would not be."""
    norm = RMSNorm(4, 1e-6).double()
    torch.nn.init.ones_(norm.w)
    close(norm(torch.full((1, 4), 1e-3, dtype=torch.float64)), torch.full((1, 4), 0.5).sqrt(), FLOAT32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_works_in_float32_and_returns_the_dtype_of_its_input(dtype: torch.dtype) -> None:
    norm = RMSNorm(64, 1e-6).to(dtype)
    torch.nn.init.ones_(norm.w)
    x = (300 * references.random(2, 5, 64, seed=3)).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    expected = references.rms_norm(x.double(), norm.w.double(), 1e-6)
    if dtype == torch.bfloat16:
        assert (y.double() - expected).abs().le(expected.abs() * 2**-8).all()  # one rounding to 8 bits, at the end
    else:
        close(y, expected, FLOAT32)


def test_a_call_leaves_nothing_behind() -> None:
    norm = references.randomise(RMSNorm(6, 1e-6).double(), seed=8)
    references.remembers_nothing(norm, lambda: norm(references.random(1, 3, 6, seed=9)))
