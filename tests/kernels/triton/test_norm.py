"""RMSNorm in Triton beside its specification."""

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.norm import add_rms_norm, rms_norm
from dsv2.kernels.triton import norm
from tests.references.fences import DEVICE, fenced
from tests.references.kernels import normal
from tests.references.tolerances import BFLOAT16, FLOAT16, close
from tests.references.triton import agrees, far_apart, traces

pytestmark = pytest.mark.usefixtures("triton_ops")


def specified_sum(x: torch.Tensor, delta: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x + delta, reference.rms_norm(x + delta, w, 1e-6)


@pytest.mark.parametrize("eps", [1e-6, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (1, 5), (5,), (3, 1500), (2, 4097)])
def test_values_and_gradients_are_those_of_the_specification(shape: tuple[int, ...], eps: float) -> None:
    x, w = normal(*shape), normal(shape[-1], seed=1)
    agrees(lambda x, w: rms_norm(x, w, eps), lambda x, w: reference.rms_norm(x, w, eps), x, w)


@pytest.mark.parametrize("shape", [(2, 3, 7), (3, 1500), (5,)])
def test_what_is_added_before_is_part_of_both_results(shape: tuple[int, ...]) -> None:
    inputs = normal(*shape), normal(*shape, seed=2), normal(shape[-1], seed=1)
    agrees(lambda x, delta, w: add_rms_norm(x, delta, w, 1e-6), specified_sum, *inputs)


def test_a_program_sums_the_weights_gradient_over_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs for eleven rows, one of which has a row less."""
    monkeypatch.setattr(norm, "PROGRAMS", 2)
    inputs = normal(11, 2500), normal(11, 2500, seed=2), normal(2500, seed=1)
    agrees(lambda x, delta, w: add_rms_norm(x, delta, w, 1e-6), specified_sum, *inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, FLOAT16), (torch.bfloat16, BFLOAT16)])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    inputs = (normal(*shape, seed=seed).to(dtype) for seed, shape in enumerate(((5, 70), (5, 70), (70,))))
    agrees(lambda x, delta, w: add_rms_norm(x, delta, w, 1e-6), specified_sum, *inputs, tolerance=tolerance)


def test_squares_may_be_beyond_float16() -> None:
    large = torch.full((1, 70), 300.0, dtype=torch.float16, device=DEVICE)
    close(rms_norm(large, torch.ones_like(large[0]), 1e-6), torch.ones_like(large), FLOAT16)


def test_half_precision_is_kept_beside_float32_weights() -> None:
    leaves = fenced(normal(3, 64).half()).requires_grad_(), fenced(normal(64, seed=1)).requires_grad_()
    out = rms_norm(*leaves, 1e-6)
    assert out.dtype == torch.float16
    out.float().sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == [torch.float16, torch.float32]


def test_a_half_added_to_a_float32_gives_a_float32() -> None:
    x, delta, w = normal(3, 70), normal(3, 70, seed=2).half(), normal(70, seed=1)
    agrees(lambda x, w: add_rms_norm(x, delta.to(DEVICE), w, 1e-6), lambda x, w: specified_sum(x, delta.to(x), w), x, w)
    leaf = delta.to(DEVICE).requires_grad_()
    add_rms_norm(x.to(DEVICE), leaf, w.to(DEVICE), 1e-6)[1].sum().backward()
    assert leaf.grad.dtype == torch.float16


def test_rows_of_zeros_give_zeros_and_finite_gradients() -> None:
    x, w = torch.zeros(2, 5), normal(5, seed=1)
    agrees(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: reference.rms_norm(x, w, 1e-6), x, w)


def test_no_rows_give_none_and_a_gradient_of_zero() -> None:
    x, w = normal(0, 5), normal(5, seed=1)
    agrees(lambda x, w: rms_norm(x, w, 1e-6), lambda x, w: reference.rms_norm(x, w, 1e-6), x, w)


def test_rows_may_be_parts_of_wider_ones() -> None:
    """MLA norms the latent, which is the larger part of one product's output."""
    for part in (slice(0, 5), slice(3, 8)):
        agrees(
            lambda x, w, part=part: rms_norm(x[..., part], w[::2], 1e-6),
            lambda x, w, part=part: reference.rms_norm(x[..., part], w[::2], 1e-6),
            normal(2, 3, 8),
            normal(10, seed=1),
        )
    agrees(
        lambda x, w: rms_norm(x.transpose(0, 2), w, 1e-6),
        lambda x, w: reference.rms_norm(x.transpose(0, 2), w, 1e-6),
        normal(7, 3, 2),
        normal(7, seed=1),
    )


def test_shapes_can_be_traced_without_data() -> None:
    x, w = normal(2, 7).requires_grad_(), normal(7).requires_grad_()
    traces(torch.ops.dsv2_triton.rms_norm, x, w, 1e-6)
    traces(torch.ops.dsv2_triton.add_rms_norm, x, x.detach(), w, 1e-6)


def test_offsets_beyond_int32_are_computed_in_int64() -> None:
    x, w = normal(3, 70).half().to(DEVICE), normal(70, seed=1).to(DEVICE)
    close(rms_norm(far_apart(x), w, 1e-6), reference.rms_norm(x, w, 1e-6), FLOAT16)
