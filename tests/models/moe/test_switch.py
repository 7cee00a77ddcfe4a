"""The Switch layer against a loop written from its paper: choices, gates, room, jitter, losses, gradients."""

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.config import ConfigError
from dsv2.models.moe.hints import Hints
from dsv2.models.moe.switch import Switch
from tests import references
from tests.references import baselines
from tests.references import moe_checks as checks
from tests.references.moe_checks import SEED, SIZES

modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def loops(capacity_factor: float = 1.25, jitter: float = 1e-2) -> checks.Loops:
    """The loops' routing, which in evaluation draws and drops nothing."""

    def routed(u: Tensor, w: references.Weights, training: bool, seed: int) -> baselines.Routed:
        seen = baselines.jittered(u, checks.drawn(*u.shape, seed=seed), jitter if training else 0.0)
        routing = baselines.switch(references.affinities(seen, w["router.w"]), capacity_factor)
        return routing if training else routing._replace(dropped=torch.zeros_like(routing.dropped))

    return routed


@modes
@pytest.mark.parametrize("capacity_factor", [0.3, 1.0, 1.25])
def test_the_layer_is_that_of_loops(capacity_factor: float, training: bool) -> None:
    config = Switch.Config(**SIZES, capacity_factor=capacity_factor, jitter=0.0)
    routing, expected = checks.layer_agrees_with_loops(config, loops(capacity_factor, 0.0), training)
    if training:
        assert torch.equal(routing.dropped, expected.dropped)
        assert expected.dropped.any()
    else:
        assert routing.dropped is None


@modes
def test_what_the_router_sees_is_jittered_in_training(training: bool) -> None:
    """Each number by its own draw from 0.1 to 1.9; the experts see what it was."""
    routing, expected = checks.layer_agrees_with_loops(Switch.Config(**SIZES, jitter=0.9), loops(jitter=0.9), training)
    if training:
        assert torch.equal(routing.dropped, expected.dropped)
    else:
        assert routing.dropped is None


def test_the_auxiliary_loss_counts_what_had_no_room() -> None:
    checks.auxiliary_loss_agrees_with_loops(Switch.Config(**SIZES, capacity_factor=0.5), loops(0.5))


@modes
def test_a_whole_model_is_that_of_loops(training: bool) -> None:
    checks.model_agrees_with_loops(Switch.Config(**SIZES), loops(), training)


def test_without_jitter_nothing_is_drawn() -> None:
    layer = references.randomise(Switch.Config(**SIZES, jitter=0.0).build(5).double(), seed=1).train()
    u, state = references.random(2, 7, 5, seed=2), torch.get_rng_state()
    _, first = layer(u, Hints(seed=SEED))
    _, other = layer(u, Hints(seed=SEED + 1))
    _, without = layer(u)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.affinities, other.affinities)
    assert torch.equal(first.affinities, without.affinities)


def test_draws_follow_the_seed() -> None:
    checks.draws_follow_the_seed(Switch.Config(**SIZES))


@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_nothing_behind(training: bool) -> None:
    checks.remembers_nothing(Switch.Config(**SIZES), training)


# ---- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("top_k=3", "top_k=3 is not valid: 1, since Switch chooses one expert"),
        ("capacity_factor=0.0", "capacity_factor=0.0 is not valid: positive"),
        ("jitter=1.0", "jitter=1.0 is not valid: from 0 to below 1"),
        ("jitter=-0.1", "jitter=-0.1 is not valid: from 0 to below 1"),
        ("max_devices=1", "max_devices=1 is not valid: null, since Switch has no device limit"),
        ("routed_scaling_factor=2.0", "routed_scaling_factor=2.0 is not valid: 1, since Switch has no scaling"),
        ("num_devices=2", "num_devices=2 is not valid: a divisor of num_experts=9"),
        (
            "dropping={capacity_factor: 1.0}",
            r"dropping=.* is not valid: null, since Switch has no device-level dropping",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.ffn\.{message}"):
        dsv2.load(["model/ffn=switch", f"++model.ffn.{override}"])
