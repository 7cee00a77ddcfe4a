"""GShard's layer against a loop written from its Algorithm 1: choices, gates, room, losses, gradients."""

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.config import ConfigError
from dsv2.models.moe.gshard import GShard
from dsv2.models.moe.hints import Hints
from tests import references
from tests.references import baselines
from tests.references import moe_checks as checks
from tests.references.moe_checks import SEED, SIZES
from tests.references.tolerances import FLOAT32, close

modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def loops(capacity_factor: float = 1.0) -> checks.Loops:
    """The loops' routing, which in evaluation drops nothing."""

    def routed(u: Tensor, w: references.Weights, training: bool, seed: int) -> baselines.Routed:
        s = references.affinities(u, w["router.w"])
        routing = baselines.gshard(s, capacity_factor, checks.drawn(*u.shape[:2], seed=seed))
        return routing if training else routing._replace(dropped=torch.zeros_like(routing.dropped))

    return routed


@modes
@pytest.mark.parametrize("capacity_factor", [0.3, 0.6, 1.0, 2.0])
def test_the_layer_is_that_of_loops(capacity_factor: float, training: bool) -> None:
    config = GShard.Config(**SIZES, capacity_factor=capacity_factor)
    routing, expected = checks.layer_agrees_with_loops(config, loops(capacity_factor), training)
    if training:
        assert torch.equal(routing.dropped, expected.dropped)
        assert expected.dropped.any()
    else:
        assert routing.dropped is None


def test_the_auxiliary_loss_counts_first_choices_with_and_without_room() -> None:
    checks.auxiliary_loss_agrees_with_loops(GShard.Config(**SIZES, capacity_factor=0.5), loops(0.5))


@modes
def test_a_whole_model_is_that_of_loops(training: bool) -> None:
    checks.model_agrees_with_loops(GShard.Config(**SIZES), loops(), training)


def test_a_second_expert_is_used_with_twice_its_gate() -> None:
    """Over 2000 tokens of gate g_2 = 0.2, and never where its gate is 0."""
    layer = GShard.Config(num_experts=2, expert_dim=1, capacity_factor=100.0).build(2).train()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(1.0)
        layer.router.w.copy_(torch.tensor([[0.8, 1.0], [0.2, 1.0]]).log())
    u = torch.tensor([1.0, 0.0]).expand(1, 2000, 2)
    _, routing = layer(u, Hints(seed=SEED))
    close(routing.gates[0, 0], torch.tensor([0.8, 0.2]), FLOAT32)
    used = float((~routing.dropped[..., 1]).double().mean())
    assert used == pytest.approx(0.4, abs=0.04)  # 3.7 standard deviations
    assert not routing.dropped[..., 0].any()
    _, sure = layer(100 * u, Hints(seed=SEED))
    assert sure.dropped[..., 1].all()


@pytest.mark.parametrize(("capacity_factor", "has_room"), [(1.0, False), (2.0, True)])
def test_a_second_choice_that_is_not_used_fills_its_place(capacity_factor: float, has_room: bool) -> None:
    """Tokens 0 and 1 both choose expert 2 second, token 0 with a gate of e^-20: of one place it leaves none (line 22),
    of two it leaves one."""
    layer = GShard.Config(num_experts=4, expert_dim=1, capacity_factor=capacity_factor).build(2).train()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(1.0)
        layer.router.w.copy_(torch.tensor([[60.0, 0.0], [0.0, 30.0], [40.0, 29.999], [0.0, 0.0]]))
    _, routing = layer(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), Hints(seed=SEED))
    assert routing.experts.tolist() == [[[0, 2], [1, 2]]]
    assert routing.dropped.tolist() == [[[False, True], [False, not has_room]]]


def test_draws_follow_the_seed() -> None:
    checks.draws_follow_the_seed(GShard.Config(**SIZES))


@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_nothing_behind(training: bool) -> None:
    checks.remembers_nothing(GShard.Config(**SIZES), training)


def test_gates_of_the_two_chosen_sum_to_one() -> None:
    """Renormalised over the two (lines 6 and 16), in training and in evaluation, unlike DeepSeekMoE's."""
    layer = references.randomise(GShard.Config(**SIZES).build(5).double(), seed=1)
    for training in (True, False):
        _, routing = layer.train(training)(references.random(2, 7, 5, seed=2))
        close(routing.gates.sum(-1), torch.ones(2, 7), FLOAT32)
        assert routing.affinities.gather(-1, routing.experts).sum(-1).max() < 0.999


# ---- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("top_k=3", "top_k=3 is not valid: 2, since GShard chooses two experts"),
        ("capacity_factor=0.0", "capacity_factor=0.0 is not valid: positive"),
        ("max_devices=1", "max_devices=1 is not valid: null, since GShard has no device limit"),
        ("routed_scaling_factor=2.0", "routed_scaling_factor=2.0 is not valid: 1, since GShard has no scaling"),
        ("num_devices=2", "num_devices=2 is not valid: a divisor of num_experts=9"),
        (
            "dropping={capacity_factor: 1.0}",
            r"dropping=.* is not valid: null, since GShard has no device-level dropping",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.ffn\.{message}"):
        dsv2.load(["model/ffn=gshard", f"++model.ffn.{override}"])
