"""Rows to experts and back beside their specifications."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.permute import gather_rows, sort_by_expert, weighted_sum
from tests.references.kernels import agrees, normal

sizes = pytest.mark.parametrize(("tokens", "top_k", "width"), [(1, 1, 3), (5, 2, 4), (7, 3, 1), (2, 6, 5)])


def ordering(pairs: int) -> tuple[Tensor, Tensor]:
    """Which pair stands at each place, in no particular order, and the place of each pair."""
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(3))
    return order, order.argsort()


@pytest.mark.parametrize(("pairs", "num_experts"), [(0, 3), (1, 1), (50, 4), (20, 30)])
def test_pairs_are_sorted_by_expert_and_keep_their_order(pairs: int, num_experts: int) -> None:
    experts = torch.randint(num_experts, (pairs,), generator=torch.Generator().manual_seed(1))
    parts, expected = sort_by_expert(experts, num_experts), reference.sort_by_expert(experts, num_experts)
    assert all(torch.equal(*pair) for pair in zip(parts, expected, strict=True))


@sizes
def test_each_token_goes_to_all_its_experts(tokens: int, top_k: int, width: int) -> None:
    """Values, and the gradient of a token, which is the sum over its copies."""
    order, inverse = ordering(tokens * top_k)
    agrees(
        lambda x: gather_rows(x, order, inverse, top_k),
        lambda x: reference.gather_rows(x, order, top_k),
        normal(tokens, width),
    )


@sizes
def test_what_comes_back_is_weighted_and_summed(tokens: int, top_k: int, width: int) -> None:
    """Values, and the gradients of rows and of gates."""
    order, inverse = ordering(tokens * top_k)
    agrees(
        lambda rows, gates: weighted_sum(rows, gates, order, inverse),
        lambda rows, gates: reference.weighted_sum(rows, gates, order),
        normal(tokens * top_k, width),
        normal(tokens, top_k, seed=1),
    )


def test_gates_of_one_bring_back_every_token_k_times() -> None:
    order, inverse = ordering(12)
    x = normal(4, 5)
    back = weighted_sum(gather_rows(x, order, inverse, 3), torch.ones(4, 3), order, inverse)
    assert torch.equal(back, x + x + x)
