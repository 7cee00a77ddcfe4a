"""The two functions in which weights meet activations: what they compute, and that nothing goes past them."""

import pytest
import torch
from torch import Tensor

from dsv2.models.attention import GQA, MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import GShard, Hash, MoE, MoEConfig, Switch
from dsv2.models.ops import PLAIN, Ops
from dsv2.models.transformer import Transformer
from tests import references
from tests.references.tolerances import FLOAT64, close

ATTENTIONS = [
    GQA.Config(num_heads=2, num_kv_heads=1, head_dim=4),
    MLA.Config(num_heads=2, head_dim=2, rope_dim=4, v_dim=3, kv_latent_dim=5, q_latent_dim=4),
]
SIZES = {"num_experts": 4, "expert_dim": 3, "num_shared": 1}
FFNS = [MoE.Config(**SIZES, top_k=2), GShard.Config(**SIZES), Switch.Config(**SIZES), Hash.Config(**SIZES)]


def test_linear_applies_rows_of_the_weight() -> None:
    x, w = references.random(2, 3, 5, seed=1), references.random(4, 5, seed=2)
    close(PLAIN.linear(x, w), torch.stack([torch.stack([w @ token for token in row]) for row in x]), FLOAT64)


def test_grouped_applies_each_experts_columns_to_its_rows() -> None:
    rows, w = references.random(5, 3, seed=1), references.random(3, 3, 4, seed=2)
    expected = torch.stack([row @ w[expert] for row, expert in zip(rows, (0, 0, 2, 2, 2), strict=True)])
    close(PLAIN.grouped(rows, torch.tensor([2, 0, 3]), w), expected, FLOAT64)


@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: type(ffn).__qualname__)
@pytest.mark.parametrize("attention", ATTENTIONS, ids=lambda attention: type(attention).__qualname__)
def test_every_matrix_passes_through_them(attention: GQA.Config | MLA.Config, ffn: MoEConfig) -> None:
    """All but the embedding, which is looked up, and the router, which works in float32 whatever the others do; so that
    a zero-bubble pipeline, a fused kernel or FP8 edits none of the modules."""
    used = set[int]()

    def linear(x: Tensor, w: Tensor) -> Tensor:
        used.add(id(w))
        return PLAIN.linear(x, w)

    def grouped(rows: Tensor, counts: Tensor, w: Tensor) -> Tensor:
        used.add(id(w))
        return PLAIN.grouped(rows, counts, w)

    config = Transformer.Config(
        vocab_size=10,
        dim=6,
        num_layers=2,
        num_dense_layers=1,
        dense=SwiGLU.Config(width=5),
        attention=attention,
        ffn=ffn,
    )
    model = config.build(ops=Ops(linear, grouped))
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens).logits, config.build()(tokens).logits)
    matrices = {name: id(weight) for name, weight in model.named_parameters() if weight.dim() > 1}
    apart = {name for name, number in matrices.items() if number not in used}
    assert apart == {"embedding"} | {name for name in matrices if name.endswith("router.w")}
