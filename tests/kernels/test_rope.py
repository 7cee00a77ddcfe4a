"""Turning pairs of channels beside its specification."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.rope import rotate
from tests.references.kernels import agrees, normal
from tests.references.tolerances import FLOAT32


def rotations(length: int, pairs: int) -> Tensor:
    """Random angles, (T, R / 2) complex64."""
    return torch.polar(torch.ones(length, pairs), normal(length, pairs, seed=2))


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 5, 3, 6), (2, 7, 4, 16)])
def test_values_and_gradients_are_those_of_the_specification(shape: tuple[int, ...]) -> None:
    turned = rotations(shape[1], shape[-1] // 2)
    agrees(lambda x: rotate(x, turned), lambda x: reference.rotate(x, turned), normal(*shape))


def test_slices_that_start_within_a_pair_are_taken() -> None:
    turned = rotations(1, 2)
    x = normal(1, 1, 1, 7)
    agrees(lambda x: rotate(x[..., 3:], turned), lambda x: reference.rotate(x[..., 3:], turned), x)


def test_channels_that_do_not_lie_together_are_taken() -> None:
    """A transposed tensor, whose pairs are not neighbours in memory."""
    turned = rotations(5, 3)
    x = normal(6, 3, 5, 2)
    agrees(
        lambda x: rotate(x.permute(3, 2, 1, 0), turned), lambda x: reference.rotate(x.permute(3, 2, 1, 0), turned), x
    )


def test_rotations_may_stretch() -> None:
    """YaRN's factor on cosines and sines: the gradient is stretched as well, not undone."""
    turned = 1.5 * rotations(5, 3)
    agrees(lambda x: rotate(x, turned), lambda x: reference.rotate(x, turned), normal(2, 5, 3, 6))


def test_bfloat16_turns_in_float32() -> None:
    """One rounding to 8 bits, at the end."""
    turned, x = rotations(5, 4), normal(2, 5, 3, 8).bfloat16()
    out = rotate(x, turned)
    assert out.dtype == torch.bfloat16
    exact = reference.rotate(x.float(), turned)
    assert (out.float() - exact).abs().le(exact.abs() * 2**-8 + FLOAT32).all()
