"""The MoE layer (Eq. 20-22) against loops over tokens and experts: values and every gradient."""

import pytest
import torch

from dsv2 import Routing
from dsv2.config import ConfigError
from dsv2.kernels.dispatch import LocalDispatch, LocalTicket
from dsv2.models.moe.dropping import Dropping
from dsv2.models.moe.hints import Hints
from dsv2.models.moe.layer import MoE
from dsv2.models.ops import Ops
from tests import references
from tests.references.tolerances import FLOAT32, FLOAT32_MODULE, FLOAT64, close, same_values_and_gradients

CASES = {
    "one of each": ((1, 1, 1), {"num_experts": 1, "top_k": 1, "expert_dim": 1}),
    "K = 1": ((1, 7, 5), {"num_experts": 4, "top_k": 1, "expert_dim": 3}),
    "K = E": ((2, 3, 4), {"num_experts": 3, "top_k": 3, "expert_dim": 2}),
    "one token": ((1, 1, 4), {"num_experts": 5, "top_k": 2, "expert_dim": 3, "num_shared": 1}),
    "shared": ((3, 2, 5), {"num_experts": 4, "top_k": 2, "expert_dim": 3, "num_shared": 2}),
    "more experts than tokens": ((1, 2, 3), {"num_experts": 16, "top_k": 2, "expert_dim": 2, "num_shared": 1}),
    "scaled": (
        (2, 2, 4),
        {"num_experts": 4, "top_k": 2, "expert_dim": 3, "num_shared": 1, "routed_scaling_factor": 16.0},
    ),
    "M < D": (
        (2, 7, 4),
        {"num_experts": 6, "top_k": 3, "expert_dim": 2, "num_shared": 2, "num_devices": 3, "max_devices": 2},
    ),
    "M = D": (
        (1, 7, 4),
        {"num_experts": 6, "top_k": 3, "expert_dim": 2, "num_devices": 3, "max_devices": 3},
    ),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "sizes"), CASES.values(), ids=CASES.keys())
def test_values_and_gradients_are_those_of_loops(shape: tuple[int, int, int], sizes: dict, training: bool) -> None:
    layer = references.randomise(MoE.Config(**sizes).build(shape[-1]).double(), seed=1).train(training)
    leaves = {"u": references.random(*shape, seed=2), **dict(layer.named_parameters())}
    own = references.twin(leaves)
    y, routing = layer(leaves["u"])
    limits = {key: sizes[key] for key in ("top_k", "num_devices", "max_devices") if key in sizes}
    chosen, _ = references.route(references.affinities(own["u"], own["router.w"]), **limits)
    assert torch.equal(routing.experts.sort(-1).values, chosen.sort(-1).values)
    expected = references.moe(
        own["u"],
        own,
        experts=chosen,
        expert_dim=sizes["expert_dim"],
        scaling=sizes.get("routed_scaling_factor", 1.0),
    )
    same_values_and_gradients(y, expected, leaves, own, FLOAT32)


def test_parameters_are_named_and_shaped_as_the_config_says() -> None:
    sizes = {"num_experts": 4, "top_k": 2, "expert_dim": 3}
    routed = {
        "router.w": (4, 5),
        "experts.w_gate_up": (4, 5, 6),
        "experts.w_down": (4, 3, 5),
    }
    shared = {"shared.w_gate_up": (12, 5), "shared.w_down": (5, 6)}
    for num_shared, expected in ((0, routed), (2, routed | shared)):
        config = MoE.Config(**sizes, num_shared=num_shared)
        assert {name: tuple(w.shape) for name, w in config.build(5).named_parameters()} == expected
        assert {weight.name: weight.shape for weight in config.weights(5)} == expected
        active = {weight.name: weight.active_ratio for weight in config.weights(5)}
        assert active == dict.fromkeys(expected, 1.0) | {"experts.w_gate_up": 0.5, "experts.w_down": 0.5}


def test_float32_is_as_close_as_it_can_be() -> None:
    sizes = {"num_experts": 6, "top_k": 2, "expert_dim": 8, "num_shared": 1}
    layer = references.randomise(MoE.Config(**sizes).build(16), seed=3)
    u = references.random(2, 7, 16, seed=4).detach().float().requires_grad_()
    leaves = {"u": u, **dict(layer.named_parameters())}
    own = references.twin(leaves)
    y, routing = layer(u)
    assert y.dtype == torch.float32
    expected = references.moe(own["u"], own, experts=routing.experts, expert_dim=8)
    same_values_and_gradients(y, expected, leaves, own, FLOAT32_MODULE)


def test_replayed_choices_have_live_gates() -> None:
    """Recorded experts, gates recomputed from the affinities of now, and gradients through them."""
    layer = references.randomise(MoE.Config(num_experts=4, top_k=2, expert_dim=3).build(5).double(), seed=5)
    leaves = {"u": references.random(2, 3, 5, seed=6), **dict(layer.named_parameters())}
    own = references.twin(leaves)
    experts = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(7)).argsort(-1)[..., :2]
    stale = torch.full((2, 3, 4), 0.25)
    y, routing = layer(leaves["u"], Hints(replay=Routing(stale, experts, stale[..., :2])))
    assert torch.equal(routing.experts, experts)
    s = references.affinities(own["u"], own["router.w"])
    close(routing.affinities, s, FLOAT32)
    close(routing.gates, references.gates(s, experts), FLOAT32)
    expected = references.moe(own["u"], own, experts=experts, expert_dim=3)
    same_values_and_gradients(y, expected, leaves, own, FLOAT32)


def test_replaying_its_own_choice_changes_nothing() -> None:
    layer = references.randomise(MoE.Config(num_experts=4, top_k=2, expert_dim=3).build(5).double(), seed=8)
    u = references.random(1, 7, 5, seed=9)
    y, routing = layer(u)
    again, replayed = layer(u, Hints(replay=routing))
    close(again, y, FLOAT64)
    assert torch.equal(replayed.experts, routing.experts)


@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_nothing_behind(training: bool) -> None:
    """No buffer, list or attribute differs after a call, and a second call gives the same."""
    dropping = Dropping.Config(capacity_factor=1.0, exempt_ratio=0.1)
    config = MoE.Config(num_experts=4, top_k=2, expert_dim=3, num_shared=1, num_devices=2, dropping=dropping)
    layer = references.randomise(config.build(5).double(), seed=10).train(training)
    u, exempt = references.random(2, 7, 5, seed=11), torch.tensor([False, True])
    references.remembers_nothing(layer, lambda: layer(u, Hints(exempt=exempt)))


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    """Without dropping, a token alone gives what it gives in a batch."""
    layer = references.randomise(MoE.Config(num_experts=6, top_k=2, expert_dim=3, num_shared=1).build(5).double(), 12)
    u = references.random(2, 3, 5, seed=13)
    whole, _ = layer(u)
    for b in range(2):
        for t in range(3):
            close(layer(u[b : b + 1, t : t + 1])[0], whole[b : b + 1, t : t + 1], FLOAT32)


def test_shared_experts_run_between_dispatch_and_combine() -> None:
    """So that communication can hide behind them; any dispatcher with these two verbs serves."""
    order = list[str]()

    class Noting(LocalDispatch):
        def dispatch(self, x: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor, LocalTicket]:
            order.append("dispatch")
            return super().dispatch(x, routing)

        def combine(self, rows: torch.Tensor, ticket: LocalTicket) -> torch.Tensor:
            order.append("combine")
            return super().combine(rows, ticket)

    config = MoE.Config(num_experts=4, top_k=2, expert_dim=3, num_shared=1)
    layer = references.randomise(config.build(5, ops=Ops(dispatcher=Noting())).double(), seed=14)
    plain = config.build(5).double()
    plain.load_state_dict(layer.state_dict())
    layer.shared.register_forward_hook(lambda *_: order.append("shared"))
    u = references.random(1, 7, 5, seed=15)
    assert torch.equal(layer(u)[0], plain(u)[0])
    assert order.index("dispatch") < order.index("shared") < order.index("combine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts=0 is not valid: at least 1"),
        ({"top_k": 5}, "top_k=5 is not valid: between 1 and 4, the experts on 1 devices"),
        ({"num_devices": 3}, "num_devices=3 is not valid: a divisor of num_experts=4"),
        ({"num_devices": 2, "max_devices": 3}, "max_devices=3 is not valid: between 1 and num_devices=2, or null"),
        ({"expert_dim": 0}, "expert_dim=0 is not valid: positive"),
        ({"num_shared": -1}, "num_shared=-1 is not valid: 0 or more"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        MoE.Config(**{"num_experts": 4, "top_k": 2, "expert_dim": 3} | change)
