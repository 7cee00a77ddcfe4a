"""Sigmoid affinities with normalised gates, against loops: choices, gates, output, gradients, losses."""

import pytest
import torch
from torch import Tensor

from dsv2.models.moe.dropping import Dropping
from dsv2.models.moe.sigmoid import Sigmoid
from tests import references
from tests.references import balancing, baselines
from tests.references import moe_checks as checks
from tests.references.moe_checks import SHAPE, SIZES
from tests.references.tolerances import FLOAT32, close, same_values_and_gradients

modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
LIMITS = {"num_experts": 6, "top_k": 3, "expert_dim": 3, "num_devices": 3, "max_devices": 2}


def loops(u: Tensor, w: references.Weights, training: bool, seed: int) -> baselines.Routed:
    s = balancing.sigmoids(u, w["router.w"])
    experts, _ = references.route(s, 2)
    none = torch.zeros_like(experts, dtype=torch.bool)
    return baselines.Routed(experts, balancing.normalised(s, experts), none, torch.zeros((), dtype=torch.float64))


@modes
def test_the_layer_is_that_of_loops(training: bool) -> None:
    routing, _ = checks.layer_agrees_with_loops(Sigmoid.Config(**SIZES, top_k=2), loops, training)
    assert routing.dropped is None
    close(routing.gates.sum(-1), torch.ones(SHAPE[:2]), FLOAT32)
    assert (routing.affinities.sum(-1) - 1).abs().min() > 0.01, "affinities are no shares"


@modes
def test_a_whole_model_is_that_of_loops(training: bool) -> None:
    checks.model_agrees_with_loops(Sigmoid.Config(**SIZES, top_k=2), loops, training)


def test_losses_are_of_shares() -> None:
    """(19): affinities normalised over all experts, so that balance costs 1; with gradients to the router."""
    layer = references.randomise(Sigmoid.Config(**LIMITS).build(SHAPE[-1]).double(), seed=3)
    leaves = {"u": references.random(*SHAPE, seed=4), "router.w": layer.router.w}
    own = references.twin(leaves)
    for name, loss in (
        ("expert", lambda s, experts: references.expert_loss(s, experts)),
        ("device", lambda s, experts: references.device_loss(s, experts, 3)),
        ("communication", lambda s, experts: references.communication_loss(s, experts, 3, 2)),
    ):
        _, routing = layer(leaves["u"])
        shares = balancing.over_all(balancing.sigmoids(own["u"], own["router.w"]))
        actual = getattr(layer.config.balance_losses(routing), name).mean()
        same_values_and_gradients(actual, loss(shares, routing.experts), leaves, own, FLOAT32)


def test_pairs_of_low_affinity_are_dropped_first() -> None:
    """By affinity and not by gate: a token whose experts are all weak has gates as large as any other's."""
    config = Sigmoid.Config(
        num_experts=2, top_k=2, expert_dim=1, num_devices=2, dropping=Dropping.Config(capacity_factor=0.5)
    )
    layer = config.build(1).train()
    with torch.no_grad():
        layer.router.w.copy_(torch.tensor([[1.0], [1.0]]))
    routing = layer.route(torch.tensor([[[-3.0], [2.0]]]))
    close(routing.gates, torch.full((1, 2, 2), 0.5), FLOAT32)
    assert routing.dropped.tolist() == [[[True, True], [False, False]]]


def test_affinities_that_underflow_give_gates_of_zero() -> None:
    layer = Sigmoid.Config(num_experts=2, top_k=2, expert_dim=1).build(1)
    with torch.no_grad():
        layer.router.w.fill_(1.0)
    routing = layer.route(torch.tensor([[[-200.0]]]))
    assert routing.gates.tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_nothing_behind(training: bool) -> None:
    checks.remembers_nothing(Sigmoid.Config(**SIZES, top_k=2), training)
