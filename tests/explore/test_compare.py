"""How alike two runs route a text, whatever the numbers of their experts."""

import pytest
import torch

from dsv2.explore.compare import agree, rand_index, similarity_by_chance
from tests.references.traces import TEXT, of


def test_agreement_does_not_depend_on_the_experts_numbers(traced):
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    routing = traced.routings[1]
    renamed = traced._replace(routings={1: routing._replace(experts=order[routing.experts])})
    found = agree(traced, renamed, 1, same_run=False)
    assert (found.profile, found.grouping) == (1.0, 1.0)
    assert found.same_top is found.overlap is None
    same = agree(traced, traced, 1, same_run=True)
    assert (same.same_top, same.overlap) == (1.0, 1.0)
    elsewhere = agree(traced, of(TEXT, seed=1), 1, same_run=False)
    assert elsewhere.profile < 1
    assert abs(elsewhere.grouping) < 0.5
    fewer = of(TEXT, overrides=("model.shape.num_experts=4",))
    assert agree(traced, fewer, 1, same_run=False).profile is None


def test_the_rand_index_by_hand_and_by_chance():
    one, other = torch.tensor([0, 0, 0, 1, 1, 1]).numpy(), torch.tensor([0, 0, 1, 1, 2, 2]).numpy()
    # pairs together in both: 1 + 1; in one: 6; in the other: 3; of 15: expected 1.2
    assert rand_index(one, other) == pytest.approx((2 - 1.2) / (4.5 - 1.2))
    generator = torch.Generator().manual_seed(0)
    drawn = [rand_index(*torch.randint(0, 5, (2, 50), generator=generator).numpy()) for _ in range(200)]
    assert abs(sum(drawn) / 200) < 0.01
    assert rand_index(one * 0, other * 0) == 1.0


def test_random_routers_look_alike_the_more_the_longer_the_text():
    short, long = (similarity_by_chance(tokens, 32, 6) for tokens in (20, 2000))
    assert 0.8 < short < long < 1
