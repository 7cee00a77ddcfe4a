"""Shapes of the compiled ops without data, and models traced with them."""

import pytest
import torch

from dsv2.kernels.choice import using
from dsv2.kernels.cross_entropy import NOT_SCORED
from tests.references.kernels import normal

EXPERTS = torch.tensor([[[0, 3], [3, 4], [4, 0]]])
GATES, UP, DOWN = normal(1, 3, 2), normal(5, 19, 14), normal(5, 7, 19)
HEADS = [normal(2, 5, *shape) for shape in ((4, 3), (4, 6), (2, 3), (1, 6), (2, 5))]
TURNS = normal(5, 3, 2)
ROTATIONS, LENGTHS = torch.polar(torch.ones(3), normal(3)), torch.tensor([4, 1])
CALLS = {
    "rms_norm": [normal(5, 19), normal(19), 1e-6],
    "add_rms_norm": [normal(5, 19), normal(5, 19), normal(19), 1e-6],
    "rms_norm_backward": [normal(5, 19), None, normal(5, 19), normal(19), normal(5)],
    "swiglu": [normal(5, 38)],
    "swiglu_backward": [normal(5, 19), normal(5, 38)],
    "experts": [normal(1, 3, 19), EXPERTS, GATES, UP, DOWN],
    "experts_backward": [normal(1, 3, 19), normal(1, 3, 19), EXPERTS, GATES, UP, DOWN, normal(6, 14)],
    "attention": [*HEADS, TURNS, 0.4],
    "attention_backward": [
        *(normal(2, 5, 4, 5), HEADS[0], HEADS[2], HEADS[4], TURNS, 0.4),
        *(normal(2, 5, 4, 5), normal(2, 4, 5), HEADS[1], HEADS[3]),
    ],
    "route_logits": [normal(2, 3, 12), 2, 4, 2],
    "route_logits_backward": [normal(3, 12), None, normal(3, 12), torch.tensor([[0, 3], [3, 4], [4, 0]])],
    "dequantise": [torch.ones(3, 12, dtype=torch.uint8), normal(3, 2, 2), 6, 16, 8],
    "mla_step": [
        *(normal(2, 1, 19), ROTATIONS, None, None, normal(8, 19), normal(12, 19), normal(9, 19), normal(9)),
        *(normal(6, 19), normal(8, 9), normal(10, 9), normal(19, 10), 2, 1e-6, 0.4),
        *(normal(2, 5, 9), normal(2, 5, 6), LENGTHS),
    ],
    "gqa_step": [
        *(normal(2, 1, 19), ROTATIONS, normal(28, 19), normal(14, 19), normal(14, 19), None, normal(19, 28)),
        *(1e-6, 0.4, normal(2, 5, 2, 7), normal(2, 5, 2, 7), LENGTHS),
    ],
    "linear": [normal(2, 3, 19), normal(5, 19)],
    "head_loss": [normal(5, 19), normal(11, 19), torch.tensor([3, NOT_SCORED, 0, 10, 3]), NOT_SCORED, True],
}


@pytest.mark.parametrize("name", CALLS)
def test_shapes_without_data_are_the_real_ones(name: str) -> None:
    with using("cpu"):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(getattr(torch.ops.dsv2, name), CALLS[name], test_utils=checks)


def test_every_op_has_a_shape_without_data() -> None:
    with using("cpu"):
        registered = torch._C._dispatch_get_all_op_names()
    assert {name for name in registered if name.startswith("dsv2::")} == {f"dsv2::{name}" for name in CALLS}
