"""Sorting of pairs and movement of rows in Triton beside their specifications."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.permute import gather_rows, sort_by_expert, weighted_sum
from dsv2.kernels.triton import permute
from tests.references.fences import DEVICE, fenced, reserved
from tests.references.kernels import normal
from tests.references.triton import agrees, traces

pytestmark = pytest.mark.usefixtures("triton_ops")

HALF = 2e-3  # float16: one rounding of 2^-11 of each sum, and of each product on the way back

sizes = pytest.mark.parametrize(
    ("tokens", "top_k", "width"), [(1, 1, 3), (5, 2, 4), (7, 3, 1), (2, 6, 5), (9, 2, 1500), (0, 2, 4)]
)


def ordering(pairs: int) -> tuple[Tensor, Tensor]:
    """Which pair stands at each place, in no particular order, and the place of each pair."""
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    return fenced(order), fenced(order.argsort())


@pytest.mark.parametrize(
    ("pairs", "num_experts", "block"),
    [(0, 3, None), (1, 1, None), (50, 1, 16), (70, 5, 16), (40, 160, 16), (300, 64, None)],
)
def test_pairs_are_sorted_by_expert_and_keep_their_order(
    monkeypatch: pytest.MonkeyPatch, pairs: int, num_experts: int, block: int | None
) -> None:
    """In one block and in several, of which the last is not full."""
    if block:
        monkeypatch.setattr(permute, "CHOICES", block * num_experts)
    experts = torch.randint(num_experts, (pairs,), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for part, expected in zip(
        sort_by_expert(fenced(experts), num_experts), reference.sort_by_expert(experts, num_experts), strict=True
    ):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("chosen", [0, 3, 6])
def test_all_pairs_may_choose_one_expert(chosen: int) -> None:
    order, inverse, counts = sort_by_expert(torch.full((40,), chosen, device=DEVICE), 7)
    assert order.tolist() == inverse.tolist() == list(range(40))
    assert counts.tolist() == [40 * (expert == chosen) for expert in range(7)]


@sizes
def test_each_token_goes_to_all_its_experts(tokens: int, top_k: int, width: int) -> None:
    order, inverse = ordering(tokens * top_k)
    agrees(
        lambda x: gather_rows(x, order, inverse, top_k),
        lambda x: reference.gather_rows(x, order, top_k),
        normal(tokens, width),
    )


@sizes
def test_what_comes_back_is_weighted_and_summed(tokens: int, top_k: int, width: int) -> None:
    order, inverse = ordering(tokens * top_k)
    agrees(
        lambda rows, gates: weighted_sum(rows, gates, order, inverse),
        lambda rows, gates: reference.weighted_sum(rows, gates, order),
        normal(tokens * top_k, width),
        normal(tokens, top_k, seed=1),
    )


def test_float16_is_summed_in_float32() -> None:
    order, inverse = ordering(12)
    rows, gates = normal(12, 40).half(), normal(4, 3, seed=1).half()
    agrees(
        lambda rows, gates: weighted_sum(rows, gates, order, inverse),
        lambda rows, gates: reference.weighted_sum(rows, gates, order),
        *(rows, gates),
        tolerance=HALF,
    )
    agrees(
        lambda x: gather_rows(x, order, inverse, 3),
        lambda x: reference.gather_rows(x, order, 3),
        normal(4, 40).half(),
        tolerance=HALF,
    )


def test_offsets_beyond_int32_are_computed_in_int64() -> None:
    """Rows of tensors of more than 2^31 elements, whose memory is reserved and hardly used."""
    width, last = 1024, 2**21
    x = reserved(last + 1, width, dtype=torch.float16)
    x[-1] = normal(width).half()
    pair = torch.tensor([last], device=DEVICE)
    assert torch.equal(gather_rows(x, pair, pair, 1), x[-1:])
    assert torch.equal(torch.ops.dsv2_triton.sum_rows(x, None, pair, 1), x[-1:])


def test_shapes_can_be_traced_without_data() -> None:
    order, inverse = (x.clone() for x in ordering(6))
    traces(torch.ops.dsv2_triton.sort_by_expert, torch.tensor([0, 2, 2, 1]), 3)
    traces(torch.ops.dsv2_triton.gather_rows, normal(3, 4).requires_grad_(), order, inverse, 2)
    gates = normal(3, 2).requires_grad_()
    traces(torch.ops.dsv2_triton.weighted_sum, normal(6, 4).requires_grad_(), gates, order, inverse)
