"""RMSNorm beside its specification."""

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.norm import add_rms_norm, rms_norm
from tests.references.kernels import agrees, normal
from tests.references.tolerances import FLOAT64

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("eps", [1e-6, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (3, 5, 64), (5,)])
def test_values_and_gradients_are_those_of_the_specification(shape: tuple[int, ...], eps: float) -> None:
    x, w = normal(*shape), normal(shape[-1], seed=1)
    agrees(lambda x, w: rms_norm(x, w, eps), lambda x, w: reference.rms_norm(x, w, eps), x, w)


def test_float64_stays_float64() -> None:
    x, w = normal(2, 3, 7, dtype=torch.float64), normal(7, seed=1, dtype=torch.float64)
    agrees(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: reference.rms_norm(x, w, 1e-6), x, w, tolerance=FLOAT64)


def test_rows_of_zeros_give_zeros_and_finite_gradients() -> None:
    """Epsilon alone stands under the root."""
    x, w = torch.zeros(2, 5), normal(5, seed=1)
    agrees(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: reference.rms_norm(x, w, 1e-6), x, w)


def test_bfloat16_is_kept_beside_float32_weights() -> None:
    """As in MLA's latents while products run in bfloat16: a wider result would be cast back by every product."""
    x, w = normal(3, 64).bfloat16(), normal(64, seed=1)
    for function in (rms_norm, reference.rms_norm):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        out = function(*leaves, 1e-6)
        assert out.dtype == torch.bfloat16
        wide = reference.rms_norm(x.float(), w, 1e-6)
        assert torch.allclose(out.float(), wide, rtol=2**-7, atol=0)  # two roundings to 8 bits
        out.float().sum().backward()
        assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("shape", [(2, 3, 7), (3, 5, 64), (5,)])
def test_what_is_added_before_is_part_of_both_results(shape: tuple[int, ...]) -> None:
    for result in (0, 1):
        agrees(
            lambda x, delta, w, result=result: add_rms_norm(x, delta, w, 1e-6)[result] + 0 * w[0],
            lambda x, delta, w, result=result: (x + delta, reference.rms_norm(x + delta, w, 1e-6))[result] + 0 * w[0],
            normal(*shape),
            normal(*shape, seed=2),
            normal(shape[-1], seed=1),
        )
