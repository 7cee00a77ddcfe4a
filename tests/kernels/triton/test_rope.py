"""Turning pairs of channels in Triton beside its specification."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.rope import rotate
from tests.references.fences import DEVICE, fenced
from tests.references.kernels import normal
from tests.references.tolerances import BFLOAT16, FLOAT16, close
from tests.references.triton import agrees, far_apart, traces

pytestmark = pytest.mark.usefixtures("triton_ops")


def rotations(*shape: int) -> Tensor:
    """Random angles, complex64."""
    return fenced(torch.polar(torch.full(shape, 1.5), normal(*shape, seed=2)))  # with YaRN's factor, it stretches too


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 6), (2, 7, 4, 16), (3, 70, 1, 64), (1, 2, 129, 64)])
def test_values_and_gradients_are_those_of_the_specification(shape: tuple[int, ...]) -> None:
    turns = rotations(shape[1], shape[-1] // 2)
    agrees(lambda x: rotate(x, turns), lambda x: reference.rotate(x, turns), normal(*shape))


@pytest.mark.parametrize("heads", [1, 3])
def test_each_sequence_may_have_positions_of_its_own(heads: int) -> None:
    turns = rotations(3, 5, 4)
    agrees(lambda x: rotate(x, turns), lambda x: reference.rotate(x, turns), normal(3, 5, heads, 8))


def test_rotations_may_be_part_of_a_table() -> None:
    turns = rotations(9, 4)[2:7]
    agrees(lambda x: rotate(x, turns.conj()), lambda x: reference.rotate(x, turns.conj()), normal(2, 5, 3, 8))
    expanded = turns.expand(2, -1, -1)
    agrees(lambda x: rotate(x, expanded), lambda x: reference.rotate(x, expanded), normal(2, 5, 3, 8))


def test_heads_may_be_parts_of_wider_ones() -> None:
    turns = rotations(5, 2)
    for part in (slice(4, 8), slice(3, 7)):  # the second starts inside a pair of the whole
        agrees(
            lambda x, part=part: rotate(x[..., part], turns),
            lambda x, part=part: reference.rotate(x[..., part], turns),
            normal(2, 5, 3, 8),
        )
    agrees(
        lambda x: rotate(x.permute(3, 2, 1, 0), turns),
        lambda x: reference.rotate(x.permute(3, 2, 1, 0), turns),
        normal(4, 3, 5, 2),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, FLOAT16), (torch.bfloat16, BFLOAT16)])
def test_half_precision_is_turned_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    turns, x = rotations(5, 4), normal(2, 5, 3, 8).to(dtype)
    agrees(lambda x: rotate(x, turns), lambda x: reference.rotate(x, turns), x, tolerance=tolerance)


def test_no_tokens_turn_into_none() -> None:
    assert rotate(torch.zeros(2, 0, 3, 8, device=DEVICE), rotations(0, 4)).shape == (2, 0, 3, 8)


def test_shapes_can_be_traced_without_data() -> None:
    traces(torch.ops.dsv2_triton.rotate, normal(2, 3, 1, 4).requires_grad_(), rotations(3, 2), False)


def test_offsets_beyond_int32_are_computed_in_int64() -> None:
    """Of a long sequence of many heads, and of a late head where heads lie apart."""
    turns, x = rotations(3, 4), normal(3, 8).half().to(DEVICE)
    apart = far_apart(x)
    close(rotate(apart[None, :, None], turns), reference.rotate(x[None, :, None], turns), FLOAT16)
    close(rotate(apart[None, None], turns[:1]), reference.rotate(x[None, None], turns[:1]), FLOAT16)
