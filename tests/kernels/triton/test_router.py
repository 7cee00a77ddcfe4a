"""The router in Triton beside its specification."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.choice import using
from dsv2.kernels.router import route_logits
from dsv2.models.moe import MoE
from tests.references.fences import DEVICE, fenced
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32, FLOAT32_MODULE, close
from tests.references.triton import agrees, traces

pytestmark = pytest.mark.usefixtures("triton_ops")


def compare(logits: Tensor, top_k: int, num_devices: int, max_devices: int | None) -> None:
    limits = {"top_k": top_k, "num_devices": num_devices, "max_devices": max_devices}
    experts, expected = (route(logits, **limits)[1] for route in (route_logits, reference.route_logits))
    assert torch.equal(experts, expected)
    agrees(
        lambda logits: route_logits(logits, **limits)[::2],
        lambda logits: reference.route_logits(logits, **limits)[::2],
        logits,
        tolerance=FLOAT32_MODULE,
    )


@pytest.mark.parametrize(
    ("shape", "top_k", "num_devices", "max_devices"),
    [
        ((1, 1, 1), 1, 1, None),
        ((1, 7, 5), 3, 1, None),
        ((3, 2, 4), 4, 1, None),
        ((2, 7, 6), 2, 3, 1),
        ((2, 7, 6), 3, 3, 2),
        ((1, 7, 8), 3, 4, 4),
        ((2, 9, 160), 6, 8, 3),
        ((40, 64), 6, 1, None),
    ],
)
def test_values_and_gradients_are_those_of_the_specification(
    shape: tuple[int, ...], top_k: int, num_devices: int, max_devices: int | None
) -> None:
    compare(2 * normal(*shape), top_k, num_devices, max_devices)


def test_of_equal_affinities_the_first_expert_counts_as_the_higher() -> None:
    """Also between devices, and among affinities of exactly 0 after an underflow."""
    compare(torch.zeros(1, 3, 12), 4, 4, 2)
    compare(torch.tensor([[[0.0, 0, 1, 0, 1, 1], [-1e4, -1e4, -1e4, 0, -1e4, -1e4]]]), 2, 3, 1)
    compare(normal(3, 9, 12).round(), 4, 3, 2)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_logits_that_are_no_numbers_still_give_experts_that_exist() -> None:
    logits = torch.full((1, 2, 12), torch.nan)
    affinities, experts, gates = route_logits(logits, top_k=4, num_devices=4, max_devices=2)
    assert experts.tolist() == [[[0, 1, 2, 3]] * 2]
    assert affinities.isnan().all()
    assert gates.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_routes_as_in_plain_torch(dtype: torch.dtype) -> None:
    layer = MoE.Config(num_experts=12, expert_dim=4, top_k=3, num_devices=4, max_devices=2).build(8)
    torch.nn.init.normal_(layer.router.w, generator=torch.Generator().manual_seed(0))
    layer, u = layer.to(DEVICE, dtype), normal(2, 5, 8, seed=1).to(DEVICE, dtype)
    routing = layer.route(u)
    with using("torch"):
        expected = layer.route(u)
    assert torch.equal(routing.experts, expected.experts)
    close(routing.affinities, expected.affinities, FLOAT32)
    close(routing.gates, expected.gates, FLOAT32)


def test_a_hook_on_the_router_still_changes_what_is_chosen() -> None:
    """Interventions set affinities after the softmax, which the op does not return to."""
    layer = MoE.Config(num_experts=6, expert_dim=4, top_k=2).build(8).to(DEVICE)
    torch.nn.init.normal_(layer.router.w, generator=torch.Generator().manual_seed(0))
    layer.router.register_forward_hook(lambda router, inputs, affinities: affinities.flip(-1))
    u = normal(2, 5, 8, seed=1).to(DEVICE)
    with using("torch"):
        expected = layer.route(u)
    assert torch.equal(layer.route(u).experts, expected.experts)


def test_half_precision_is_routed_in_float32() -> None:
    logits = fenced(normal(1, 5, 8).half()).requires_grad_()
    affinities, _, gates = route_logits(logits, top_k=2)
    assert affinities.dtype == gates.dtype == torch.float32
    close(affinities, logits.detach().float().softmax(-1), FLOAT32)
    gates.sum().backward()
    assert logits.grad.dtype == torch.float16


def test_no_tokens_are_enough() -> None:
    logits = normal(1, 0, 8).to(DEVICE).requires_grad_()
    affinities, experts, gates = route_logits(logits, top_k=2, num_devices=4, max_devices=2)
    assert (affinities.shape, experts.shape, gates.shape) == ((1, 0, 8), (1, 0, 2), (1, 0, 2))
    (affinities.sum() + gates.sum()).backward()
    assert logits.grad.shape == (1, 0, 8)


def test_shapes_can_be_traced_without_data() -> None:
    traces(torch.ops.dsv2_triton.route_logits, normal(3, 12).requires_grad_(), 4, 4, 2)
