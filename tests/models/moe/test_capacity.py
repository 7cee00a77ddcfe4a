"""Places of an expert: who takes them first, how many there are, against a loop and by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2.models.moe.capacity import over_capacity


def by_loop(experts: torch.Tensor, num_experts: int, capacity_factor: float) -> torch.Tensor:
    """All first choices take a place before any second one, each sequence by sequence and token by token."""
    B, T, K = experts.shape
    places = math.floor(capacity_factor * B * T * K / num_experts)
    taken = [0] * num_experts
    over = torch.zeros(B, T, K, dtype=torch.bool)
    for k in range(K):
        for b in range(B):
            for t in range(T):
                expert = int(experts[b, t, k])
                over[b, t, k] = taken[expert] >= places
                taken[expert] += 1
    return over


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    num_experts=st.integers(1, 6),
    seed=st.integers(0, 1000),
    capacity_factor=st.sampled_from([0.1, 0.5, 1.0, 1.25, 3.0]),
    data=st.data(),
)
def test_places_are_taken_as_in_a_loop(
    batch: int, length: int, num_experts: int, seed: int, capacity_factor: float, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, num_experts))
    generator = torch.Generator().manual_seed(seed)
    experts = torch.rand(batch, length, num_experts, generator=generator).argsort(-1)[..., :top_k]
    over = over_capacity(experts, num_experts=num_experts, capacity_factor=capacity_factor)
    assert over.dtype == torch.bool
    assert torch.equal(over, by_loop(experts, num_experts, capacity_factor))


def test_first_choices_come_before_second_ones_and_earlier_tokens_before_later_ones() -> None:
    """By hand, 4 tokens in 2 sequences on 4 experts: at a factor of 1 every expert has room for 2 of the 8 choices."""
    experts = torch.tensor([[[0, 1], [2, 0]], [[0, 1], [0, 1]]])
    over = over_capacity(experts, num_experts=4, capacity_factor=1.0)
    # expert 0: first choices of tokens 0, 2 and 3, then the second of token 1; expert 1: seconds of 0, 2 and 3
    assert over.tolist() == [[[False, False], [False, True]], [[False, False], [True, True]]]
    assert not over_capacity(experts, num_experts=4, capacity_factor=2.0).any()
    assert over_capacity(experts, num_experts=4, capacity_factor=0.49).all()  # 0.98 of a place is none
    assert int((~over_capacity(experts, num_experts=4, capacity_factor=0.5)).sum()) == 3  # one each of 0, 1 and 2


@pytest.mark.parametrize("num_experts", [1, 4])
def test_room_for_every_choice_leaves_nothing_out(num_experts: int) -> None:
    """E times the average is all choices there are, even where all tokens choose the same expert."""
    experts = torch.zeros(2, 5, 1, dtype=torch.int64)
    assert not over_capacity(experts, num_experts=num_experts, capacity_factor=float(num_experts)).any()
