"""DeepSeek-V3's layer: the bias chooses as in loss-free balancing, gates are sigmoid and normalised."""

import pytest
import torch

from dsv2.models.moe.v3 import V3
from tests import references
from tests.references import balancing
from tests.references.baselines import moe as moe_by_loops
from tests.references.moe_checks import SHAPE
from tests.references.tolerances import FLOAT32, close, same_values_and_gradients

BIAS = torch.tensor([0.31, -0.17, 0.02, 0.13, -0.29, 0.07])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_layer_is_that_of_loops(training: bool) -> None:
    limits = {"top_k": 3, "num_devices": 3, "max_devices": 2}
    config = V3.Config(num_experts=6, expert_dim=3, num_shared=1, routed_scaling_factor=2.5, **limits)
    layer = references.randomise(config.build(SHAPE[-1]).double(), seed=1).train(training)
    layer.bias.copy_(BIAS)
    leaves = {"u": references.random(*SHAPE, seed=2), **dict(layer.named_parameters())}
    own = references.twin(leaves)
    y, routing = layer(leaves["u"])
    s = balancing.sigmoids(own["u"], own["router.w"])
    experts = balancing.choose(s, BIAS, **limits)
    assert torch.equal(routing.experts, experts)
    assert not torch.equal(experts, references.route(s, **limits)[0]), "the bias changes no choice here"
    gates = balancing.normalised(s, experts)
    close(routing.gates, gates, FLOAT32, "gates")
    expected = moe_by_loops(own["u"], own, experts=experts, gates=2.5 * gates, dropped=None, expert_dim=3)
    same_values_and_gradients(y, expected, leaves, own, FLOAT32)


def test_losses_are_of_shares_without_the_bias() -> None:
    """(17) to (20)."""
    layer = references.randomise(V3.Config(num_experts=6, top_k=2, expert_dim=3).build(5).double(), seed=3)
    layer.bias.copy_(BIAS)
    u = references.random(*SHAPE, seed=4)
    _, routing = layer(u)
    shares = balancing.over_all(balancing.sigmoids(u, layer.router.w))
    expected = references.expert_loss(shares, routing.experts)
    close(layer.config.balance_losses(routing).expert.mean(), expected, FLOAT32)


def test_its_bias_moves_and_is_stored() -> None:
    config = V3.Config(num_experts=3, top_k=1, expert_dim=1, bias_update_rate=0.5)
    layer = config.build(2)
    layer.update_bias(torch.tensor([3, 0, 0]))
    assert layer.bias.tolist() == [-0.5, 0.5, 0.5]
    assert config.buffers() == {"bias": (3,)}
