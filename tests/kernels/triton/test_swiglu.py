"""SwiGLU's elementwise part in Triton beside its specification."""

import pytest
import torch

from dsv2.kernels import reference
from dsv2.kernels.swiglu import swiglu
from tests.references.fences import DEVICE
from tests.references.kernels import normal
from tests.references.tolerances import BFLOAT16, FLOAT16, close
from tests.references.triton import agrees, far_apart, traces

pytestmark = pytest.mark.usefixtures("triton_ops")


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 14), (2, 64), (6,), (0, 4), (3, 2 * 1100)])
def test_values_and_gradients_are_those_of_the_specification(shape: tuple[int, ...]) -> None:
    agrees(swiglu, reference.swiglu, normal(*shape))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, FLOAT16), (torch.bfloat16, BFLOAT16)])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    agrees(swiglu, reference.swiglu, normal(5, 70).to(dtype), tolerance=tolerance)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # to infinity, whose inverse is the 0 that is meant
def test_large_gates_neither_overflow_nor_lose_their_gradient() -> None:
    agrees(swiglu, reference.swiglu, torch.tensor([[100.0, -100.0, 2.0, 3.0]]))


def test_rows_may_be_parts_of_wider_ones() -> None:
    agrees(lambda x: swiglu(x[:, 1:, 3:9]), lambda x: reference.swiglu(x[:, 1:, 3:9]), normal(2, 4, 10))
    agrees(lambda x: swiglu(x.t()), lambda x: reference.swiglu(x.t()), normal(6, 3))


def test_shapes_can_be_traced_without_data() -> None:
    traces(torch.ops.dsv2_triton.swiglu, normal(2, 6).requires_grad_())


def test_offsets_beyond_int32_are_computed_in_int64() -> None:
    x = normal(3, 70).half().to(DEVICE)
    close(swiglu(far_apart(x)), reference.swiglu(x), FLOAT16)
