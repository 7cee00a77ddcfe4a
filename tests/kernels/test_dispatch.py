"""Tokens to experts and back: rows sorted by expert, and sums of what comes back, against loops over pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv2 import Routing
from dsv2.kernels.dispatch import LocalDispatch
from tests import references
from tests.references.tolerances import EXACT, FLOAT32, FLOAT64, close, same_values_and_gradients


def routing_of(experts: Tensor, num_experts: int, dropped: Tensor | None = None, seed: int = 1) -> Routing:
    """Random float32 gates that ask for a gradient, beside these experts (B, T, K)."""
    generator = torch.Generator().manual_seed(seed)
    affinities = torch.rand(*experts.shape[:2], num_experts, generator=generator)
    return Routing(affinities, experts, affinities.gather(-1, experts).requires_grad_(), dropped)


@st.composite
def choices(draw: st.DrawFn) -> tuple[Tensor, int]:
    """Experts (B, T, K), different ones for each token, and their number E."""
    num_experts, batch = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    length, top_k = draw(st.sampled_from([1, 2, 7])), draw(st.integers(1, num_experts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.rand(batch, length, num_experts, generator=generator).argsort(-1)[..., :top_k], num_experts


@settings(max_examples=40, deadline=None, derandomize=True)
@given(chosen=choices())
def test_rows_stand_by_expert_in_the_order_of_tokens(chosen: tuple[Tensor, int]) -> None:
    """The rows of expert 0 first, then those of 1 and so on; as many of each as tokens chose it."""
    experts, num_experts = chosen
    x = references.random(*experts.shape[:2], 3, seed=2)
    rows, counts, _ = LocalDispatch().dispatch(x, routing_of(experts, num_experts))
    expected = [
        (b, t)
        for expert in range(num_experts)
        for b in range(len(experts))
        for t in range(experts.shape[1])
        if expert in experts[b, t].tolist()
    ]
    close(rows, torch.stack([x[place] for place in expected]), EXACT)
    assert counts.tolist() == [int((experts == expert).sum()) for expert in range(num_experts)]


@pytest.mark.parametrize("with_dropped", [False, True])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(chosen=choices())
def test_what_comes_back_is_weighted_and_summed_per_token(with_dropped: bool, chosen: tuple[Tensor, int]) -> None:
    """Expert e returns (e + 1) x: a token gets x times the sum of its gates' (e + 1), a dropped pair adds nothing.

    Values, and the gradients of x and of the gates.
    """
    experts, num_experts = chosen
    dropped = (experts + torch.arange(experts.shape[1])[:, None]) % 2 == 0 if with_dropped else None
    routing, dispatcher = routing_of(experts, num_experts, dropped), LocalDispatch()
    leaves = {"x": references.random(*experts.shape[:2], 3, seed=2), "gates": routing.gates}
    own = references.twin(leaves)
    rows, counts, ticket = dispatcher.dispatch(leaves["x"], routing)
    factors = torch.arange(1, num_experts + 1, dtype=torch.float64).repeat_interleave(counts)
    y = dispatcher.combine(rows * factors[:, None], ticket)

    kept = torch.ones_like(experts, dtype=torch.bool) if dropped is None else ~dropped
    expected = torch.zeros_like(own["x"])
    for b, t, k in kept.nonzero().tolist():
        expected[b, t] = expected[b, t] + own["gates"][b, t, k] * (int(experts[b, t, k]) + 1) * own["x"][b, t]
    same_values_and_gradients(y, expected, leaves, own, FLOAT32)


def test_dropped_pairs_are_computed_but_weigh_nothing() -> None:
    """Counts are of all pairs, so that shapes do not depend on what is dropped; a token without pairs gets 0."""
    experts = torch.tensor([[[0, 2], [2, 1]]])
    dropped = torch.tensor([[[True, True], [False, True]]])
    routing, dispatcher = routing_of(experts, 4, dropped), LocalDispatch()
    x = references.random(1, 2, 3, seed=3)
    rows, counts, ticket = dispatcher.dispatch(x, routing)
    assert counts.tolist() == [1, 1, 2, 0]
    y = dispatcher.combine(rows, ticket)
    assert not y[0, 0].any()
    close(y[0, 1], routing.gates[0, 1, 0].double() * x[0, 1], FLOAT64)


def test_rows_keep_their_dtype_on_the_way_back() -> None:
    """Gates are float32; a bfloat16 layer gets bfloat16 back."""
    routing = routing_of(torch.tensor([[[0, 1], [1, 0]]]), 2)
    rows, _, ticket = LocalDispatch().dispatch(torch.ones(1, 2, 3, dtype=torch.bfloat16), routing)
    assert rows.dtype == torch.bfloat16
    y = LocalDispatch().combine(rows, ticket)
    assert y.dtype == torch.bfloat16
    exact = routing.gates.sum(-1, keepdim=True).expand(1, 2, 3)
    close(y.float(), exact, 2**-7)  # gates rounded to 8 bits, and their sum once more
