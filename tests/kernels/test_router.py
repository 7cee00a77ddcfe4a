"""The choice of experts, in plain torch and compiled, beside its specification."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.router import route_logits
from dsv2.models.init import initialise
from dsv2.models.moe.layer import MoE
from dsv2.models.ops import PLAIN
from tests.references.kernels import agrees, normal
from tests.references.tolerances import FLOAT32, close


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("shape", "top_k", "num_devices", "max_devices"),
    [((1, 1, 1), 1, 1, None), ((2, 7, 6), 2, 3, 1), ((2, 7, 6), 3, 3, 2), ((1, 7, 8), 3, 4, 4), ((5, 160), 6, 8, 3)],
)
def test_values_and_gradients_are_those_of_the_specification(
    shape: tuple[int, ...], top_k: int, num_devices: int, max_devices: int | None
) -> None:
    """Where no affinities are equal, whose order `torch.topk` leaves open."""
    limits = {"top_k": top_k, "num_devices": num_devices, "max_devices": max_devices}
    logits = 2 * normal(*shape)
    assert torch.equal(route_logits(logits, **limits)[1], reference.route_logits(logits, **limits)[1])
    for output in (0, 2):
        agrees(
            lambda x, output=output: route_logits(x, **limits)[output],
            lambda x, output=output: reference.route_logits(x, **limits)[output],
            logits,
        )


@pytest.mark.usefixtures("compiled_ops")
@pytest.mark.parametrize(("num_devices", "max_devices"), [(1, None), (4, 2), (3, 1), (12, 5)])
def test_compiled_ties_are_those_of_the_specification(num_devices: int, max_devices: int | None) -> None:
    """Few different logits, so that nearly every choice is between equals, of experts and of devices."""
    logits = normal(3, 50, 12).round()
    limits = {"top_k": 4, "num_devices": num_devices, "max_devices": max_devices}
    got, expected = route_logits(logits, **limits), reference.route_logits(logits, **limits)
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], got[0].gather(-1, got[1]))


@pytest.mark.usefixtures("compiled_ops")
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_have_valid_experts_and_leave_others_alone(poison: float) -> None:
    logits = normal(4, 12)
    logits[1, 5] = poison
    affinities, experts, _ = route_logits(logits, top_k=3, num_devices=4, max_devices=2)
    assert affinities[1].isnan().any()
    assert experts.min() >= 0
    assert experts.max() < 12
    rest = [0, 2, 3]
    alone = route_logits(logits[rest], top_k=3, num_devices=4, max_devices=2)
    for whole, part in zip((affinities, experts), alone[:2], strict=True):
        assert torch.equal(whole[rest], part)


def test_the_layer_routes_with_the_compiled_op_unless_its_router_is_hooked(compiled_ops: None) -> None:
    config = MoE.Config(num_experts=12, expert_dim=4, top_k=3, num_devices=4, max_devices=2)
    layer, u = config.build(8, PLAIN), normal(2, 5, 8)
    initialise(layer, std=0.5, embedding_std=0.5, seed=0)

    def called() -> list[str]:
        with torch.profiler.profile() as profile:
            layer.route(u)
        return [event.key for event in profile.key_averages()]

    assert "dsv2::route_logits" in called()

    def halved(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output / 2

    whole = layer.route(u).gates
    layer.router.register_forward_hook(halved)
    assert "dsv2::route_logits" not in called()
    close(layer.route(u).gates, whole / 2, FLOAT32)


def test_the_specification_by_hand() -> None:
    """Three devices of two experts; of two equal ones the first counts as the higher."""
    logits = torch.tensor([0.24, 0.25, 0.30, 0.05, 0.15, 0.01])
    for limit, chosen in ((1, [2, 3]), (2, [2, 1]), (None, [2, 1])):
        experts = reference.route_logits(logits[None], top_k=2, num_devices=3, max_devices=limit)[1]
        assert experts.tolist() == [chosen]
    assert reference.route_logits(torch.zeros(1, 6), top_k=3, num_devices=3, max_devices=2)[1].tolist() == [[0, 1, 2]]
