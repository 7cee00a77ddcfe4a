"""What GShard, Switch and hash layers have in common: a model with one of them, and checks against loops.

B sequences, T tokens, d model width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dsv2.models.attention import GQA
from dsv2.models.moe import MoEConfig
from dsv2.models.moe.hints import Hints
from dsv2.models.moe.router import Routing
from dsv2.models.transformer import Transformer
from tests import references
from tests.references.baselines import Routed
from tests.references.baselines import moe as moe_by_loops
from tests.references.tolerances import FLOAT32, close, same_values_and_gradients

SHAPE = (2, 7, 5)  # B, T, d
TOKENS = torch.tensor([[3, 0, 3, 9, 1, 4, 4], [2, 9, 9, 5, 3, 0, 6]])
SIZES = {"num_experts": 4, "expert_dim": 3, "num_shared": 1}
SEED = 11

# The routing of u (B, T, d) by a layer's weights, in training or not, from the seed of what is drawn.
Loops = Callable[[Tensor, references.Weights, bool, int], Routed]


def drawn(*shape: int, seed: int = SEED) -> Tensor:
    """What a layer with this seed draws."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small_model(ffn: MoEConfig) -> Transformer:
    """Two layers with `ffn`, weights that are seen, float64."""
    config = Transformer.Config(
        vocab_size=10,
        dim=6,
        num_layers=2,
        attention=GQA.Config(num_heads=2, num_kv_heads=1, head_dim=4),
        ffn=ffn,
        norm_eps=1e-2,
    )
    return references.randomise(config.build().double(), seed=1)


def layer_agrees_with_loops(config: MoEConfig, loops: Loops, training: bool) -> tuple[Routing, Routed]:
    """Choices and gates, then the output and every gradient, shared expert included; gives both sides' routing."""
    layer = references.randomise(config.build(SHAPE[-1]).double(), seed=1).train(training)
    leaves = {"u": references.random(*SHAPE, seed=2), **dict(layer.named_parameters())}
    own = references.twin(leaves)
    y, routing = layer(leaves["u"], Hints(tokens=TOKENS, seed=SEED))
    expected = loops(own["u"], own, training, SEED)
    assert torch.equal(routing.experts, expected.experts)
    close(routing.gates, expected.gates, FLOAT32, "gates")
    assert routing.affinities.dtype == routing.gates.dtype == torch.float32
    by_loops = moe_by_loops(
        own["u"], own, experts=expected.experts, gates=expected.gates, dropped=expected.dropped, expert_dim=3
    )
    same_values_and_gradients(y, by_loops, leaves, own, FLOAT32)
    return routing, expected


def auxiliary_loss_agrees_with_loops(config: MoEConfig, loops: Loops) -> None:
    """Value of the batch, per sequence where the mean is it, and gradients with respect to affinities and router."""
    layer = references.randomise(config.build(SHAPE[-1]).double(), seed=3).train()
    leaves = {"u": references.random(*SHAPE, seed=4), "router.w": layer.router.w}
    own = references.twin(leaves)
    _, routing = layer(leaves["u"], Hints(seed=SEED))
    assert routing.dropped is not None
    assert routing.dropped.any()
    losses = config.balance_losses(routing)
    assert losses.expert.shape == (2,)
    assert not losses.device.any()
    assert not losses.communication.any()
    same_values_and_gradients(losses.expert.mean(), loops(own["u"], own, True, SEED).loss, leaves, own, FLOAT32)


def model_agrees_with_loops(config: MoEConfig, loops: Loops, training: bool) -> None:
    """Logits and gradients of a whole model, weight by weight; each layer draws from a seed of its own."""
    model = small_model(config).train(training)
    output = model(TOKENS, seed=3)
    leaves = dict(model.named_parameters())
    own = references.twin(leaves)

    def attention(h: Tensor, w: references.Weights) -> Tensor:
        heads = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "rope_dim": 4}
        return references.gqa(h, w, **heads, thetas=references.rope_frequencies(4, 10000.0))

    def ffn(h: Tensor, w: references.Weights, layer: int) -> Tensor:
        routed = loops(h, w, training, 3 * 2 + layer)
        assert torch.equal(output.routings[layer].experts, routed.experts)
        return moe_by_loops(h, w, experts=routed.experts, gates=routed.gates, dropped=routed.dropped, expert_dim=3)

    logits = references.transformer(TOKENS, own, num_layers=2, eps=1e-2, attention=attention, ffn=ffn)
    same_values_and_gradients(output.logits, logits, leaves, own, FLOAT32)


def draws_follow_the_seed(config: MoEConfig) -> None:
    """The same again, another with another seed, and torch's generator only without one."""
    model = small_model(config).train()
    state = torch.get_rng_state()
    first, again, other = (model(TOKENS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.logits, other.logits)
    assert not torch.equal(model(TOKENS).logits, model(TOKENS).logits)


def remembers_nothing(config: MoEConfig, training: bool) -> None:
    layer = references.randomise(config.build(SHAPE[-1]).double(), seed=10).train(training)
    u, hints = references.random(*SHAPE, seed=11), Hints(tokens=TOKENS, seed=SEED)
    references.remembers_nothing(layer, lambda: layer(u, hints))
