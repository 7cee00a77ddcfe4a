"""The routed experts as one op against their specification, and the layers built of either implementation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.experts import routed_experts
from dsv2.models.moe import MoE
from tests.references.kernels import agrees, normal
from tests.references.moe_layers import LAYERS, same_layer
from tests.references.tolerances import FLOAT32_MODULE, FLOAT64, close

pytestmark = pytest.mark.usefixtures("compiled_ops")


def compare(experts: Tensor, num_experts: int, dim: int, width: int) -> None:
    agrees(
        lambda x, gates, w_gate_up, w_down: routed_experts(x, experts, gates, w_gate_up, w_down),
        lambda x, gates, w_gate_up, w_down: reference.routed_experts(x, experts, gates, w_gate_up, w_down),
        normal(*experts.shape[:2], dim),
        normal(*experts.shape, seed=1),
        normal(num_experts, dim, 2 * width, seed=2),
        normal(num_experts, width, dim, seed=3),
        tolerance=FLOAT32_MODULE,
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data(), num_experts=st.integers(1, 9), dim=st.integers(1, 20), width=st.integers(1, 20))
def test_any_choice_of_experts_gives_the_specification(
    data: st.DataObject, num_experts: int, dim: int, width: int
) -> None:
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    top_k = data.draw(st.integers(1, num_experts))
    chosen = data.draw(st.lists(st.permutations(range(num_experts)), min_size=batch * length, max_size=batch * length))
    compare(torch.tensor(chosen)[:, :top_k].view(batch, length, top_k), num_experts, dim, width)


def test_one_expert_may_get_every_token_and_the_others_none() -> None:
    compare(torch.full((2, 33, 1), 3), 5, 8, 6)


def test_the_specification_is_a_loop_over_pairs() -> None:
    x, gates = normal(2, 3, 4, dtype=torch.float64), normal(2, 3, 2, seed=1, dtype=torch.float64)
    up, down = normal(5, 4, 6, seed=2, dtype=torch.float64), normal(5, 3, 4, seed=3, dtype=torch.float64)
    experts = torch.tensor([[[0, 1], [4, 2], [1, 0]], [[3, 4], [0, 4], [2, 3]]])
    expected = torch.zeros_like(x)
    for b in range(2):
        for t in range(3):
            for k in range(2):
                e = experts[b, t, k]
                gate, value = (x[b, t] @ up[e]).chunk(2)
                expected[b, t] += gates[b, t, k] * ((gate / (1 + (-gate).exp()) * value) @ down[e])
    close(reference.routed_experts(x, experts, gates, up, down), expected, FLOAT64)


@pytest.mark.parametrize("expert", [-1, 5])
def test_an_expert_that_does_not_exist_is_refused(expert: int) -> None:
    with pytest.raises(RuntimeError, match=f"experts: {expert} is not one of 5"):
        routed_experts(
            normal(1, 1, 4), torch.tensor([[[expert]]]), torch.ones(1, 1, 1), normal(5, 4, 6), normal(5, 3, 4)
        )


@pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS.keys())
def test_layers_are_the_same_with_either_implementation(config: MoE.Config) -> None:
    same_layer(config, "cpu", 12)
