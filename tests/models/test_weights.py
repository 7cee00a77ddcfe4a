"""What configs say of their weights: totals, active parts, and that a model's are those of its modules."""

import pytest
import torch

from dsv2.models.attention import GQA, MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import GShard, Hash, MoE, Switch
from dsv2.models.transformer import Transformer
from dsv2.models.weights import Weight


def test_a_weight_counts_its_elements_and_those_that_a_token_uses() -> None:
    """6 of 64 experts of 10 x 20 are 1200 active elements; the ratio is not rounded before."""
    experts = Weight("experts.w_down", (64, 10, 20), 6 / 64)
    assert (experts.total, experts.active) == (12_800, 1200)
    third = Weight("w", (3, 100), 1 / 3)
    assert (third.total, third.active) == (300, 100)


def test_a_weight_is_active_unless_said() -> None:
    assert Weight("w", (3, 4)).active == Weight("w", (3, 4)).total == 12


@pytest.mark.parametrize(("shape", "is_matrix"), [((4,), False), ((4, 3), True), ((2, 4, 3), True)])
def test_norms_are_vectors_and_all_else_are_matrices(shape: tuple[int, ...], is_matrix: bool) -> None:
    assert Weight("w", shape).is_matrix is is_matrix


SIZES = {"num_experts": 4, "expert_dim": 3}
ATTENTIONS = [
    GQA.Config(num_heads=4, num_kv_heads=2, head_dim=6),
    GQA.Config(num_heads=4, num_kv_heads=1, head_dim=6, key_norm=True),
    MLA.Config(num_heads=2, head_dim=2, rope_dim=4, v_dim=3, kv_latent_dim=5),
    MLA.Config(num_heads=2, head_dim=2, rope_dim=4, v_dim=3, kv_latent_dim=5, q_latent_dim=4),
]
FFNS = [
    SwiGLU.Config(width=9),
    MoE.Config(**SIZES, top_k=2),
    MoE.Config(**SIZES, top_k=2, num_shared=2),
    GShard.Config(**SIZES),
    Switch.Config(**SIZES, num_shared=1),
    Hash.Config(**SIZES),
]


@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: f"{type(ffn).__qualname__.partition('.')[0]}")
@pytest.mark.parametrize("attention", ATTENTIONS, ids=["GQA", "MQA, key norm", "MLA", "MLA, query latent"])
def test_a_layers_weights_are_those_of_its_module(
    attention: GQA.Config | MLA.Config, ffn: SwiGLU.Config | MoE.Config
) -> None:
    """Name by name and shape by shape, for a dense first layer and the others."""
    config = Transformer.Config(
        vocab_size=10,
        dim=6,
        num_layers=2,
        num_dense_layers=1,
        dense=SwiGLU.Config(width=5),
        attention=attention,
        ffn=ffn,
    )
    with torch.device("meta"):
        model = config.build()
    for number, layer in enumerate(model.layers):
        built = {name: tuple(weight.shape) for name, weight in layer.named_parameters()}
        assert {weight.name: weight.shape for weight in config.layer_weights(number)} == built
