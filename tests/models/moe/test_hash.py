"""The hash layer: splitmix64 of a token's id against integers of any size, and what such a layer does not have."""

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.config import ConfigError
from dsv2.models.moe.hash import Hash
from dsv2.models.moe.hints import Hints
from tests import references
from tests.references import baselines
from tests.references import moe_checks as checks
from tests.references.moe_checks import SHAPE, SIZES, TOKENS

modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def loops(u: Tensor, w: references.Weights, training: bool, seed: int) -> baselines.Routed:
    """The expert of each token's id, gate 1; nothing is dropped, and there is no loss."""
    hashed = [[baselines.random_hash(int(token), 0, SIZES["num_experts"]) for token in row] for row in TOKENS]
    experts = torch.tensor(hashed)[..., None]
    ones, none = torch.ones_like(experts).double(), torch.zeros_like(experts, dtype=torch.bool)
    return baselines.Routed(experts, ones, none, torch.zeros((), dtype=torch.float64))


@modes
def test_the_layer_is_that_of_loops(training: bool) -> None:
    """Training is evaluation: nothing is dropped in either."""
    routing, _ = checks.layer_agrees_with_loops(Hash.Config(**SIZES), loops, training)
    assert routing.dropped is None


@modes
def test_a_whole_model_is_that_of_loops(training: bool) -> None:
    checks.model_agrees_with_loops(Hash.Config(**SIZES), loops, training)


def test_affinities_are_one_for_the_expert_and_zero_for_the_others() -> None:
    _, routing = Hash.Config(**SIZES).build(5)(torch.zeros(SHAPE), Hints(tokens=TOKENS))
    assert routing.affinities.sum() == TOKENS.numel()
    assert (routing.affinities.gather(-1, routing.experts) == 1).all()


def test_there_are_no_losses() -> None:
    config = Hash.Config(**SIZES)
    _, routing = config.build(5)(torch.zeros(SHAPE), Hints(tokens=TOKENS))
    assert [loss.tolist() for loss in config.balance_losses(routing)] == [[0.0, 0.0]] * 3


def test_a_hash_is_fixed_and_spreads() -> None:
    """It depends on id, seed and number of experts alone, and sends 4096 ids evenly to 16 experts."""
    ids = torch.arange(4096)[None]
    routers = [Hash.Config(num_experts=16, expert_dim=1, hash_seed=seed).build(4).router for seed in (0, 0, 1)]
    first, again, other = (router(ids) for router in routers)
    assert torch.equal(first, again)
    assert float((first == other).double().mean()) == pytest.approx(1 / 16, abs=0.02)
    counts = torch.bincount(first.flatten(), minlength=16)
    assert ((counts - 256).abs() < 4 * 16).all()  # 4 standard deviations of 16
    assert first[0, :200].tolist() == [baselines.random_hash(token, 0, 16) for token in range(200)]


@pytest.mark.parametrize("seed", [0, 7, 2**62, 2**63 - 1])
def test_integers_wrap_around_at_64_bits(seed: int) -> None:
    """As the loop's integers of any size do modulo 2^64, also where seeds are so large that sums overflow."""
    router = Hash.Config(num_experts=13, expert_dim=1, hash_seed=seed).build(4).router
    ids = [0, 1, 4095, 102_399]
    assert router(torch.tensor([ids])).tolist() == [[baselines.random_hash(token, seed, 13) for token in ids]]


def test_a_layer_without_tokens_says_so() -> None:
    with pytest.raises(ValueError, match=r"^tokens=None: a hash layer routes by token ids"):
        Hash.Config(**SIZES).build(5)(torch.zeros(SHAPE))


def test_there_are_no_router_weights() -> None:
    """Neither in the module nor in what the config says of its weights."""
    config = Hash.Config(**SIZES)
    assert "router.w" not in dict(config.build(5).named_parameters())
    assert "router.w" not in {weight.name for weight in config.weights(5)}


@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_nothing_behind(training: bool) -> None:
    checks.remembers_nothing(Hash.Config(**SIZES), training)


# ---- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("top_k=3", "top_k=3 is not valid: 1, since a hash selects one expert"),
        ("hash_seed=-1", "hash_seed=-1 is not valid: 0 or more"),
        ("max_devices=1", "max_devices=1 is not valid: null, since a hash layer has no device limit"),
        ("routed_scaling_factor=2.0", "routed_scaling_factor=2.0 is not valid: 1, since a hash layer has no scaling"),
        ("num_devices=2", "num_devices=2 is not valid: a divisor of num_experts=9"),
        (
            "dropping={capacity_factor: 1.0}",
            r"dropping=.* is not valid: null, since a hash layer has no device-level dropping",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.ffn\.{message}"):
        dsv2.load(["model/ffn=hash", f"++model.ffn.{override}"])
