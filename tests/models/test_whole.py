"""A whole model against loops: embedding, blocks with their norms and residuals, final norm, output head."""

import pytest
import torch

from dsv2.models.attention import GQA, MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.dropping import Dropping
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from tests import references
from tests.references.tolerances import FLOAT32, same_values_and_gradients

DIM, EPS = 6, 1e-2  # large enough to be seen
ATTENTIONS = {
    "GQA": (GQA.Config(num_heads=2, num_kv_heads=1, head_dim=4), references.gqa),
    "MLA": (MLA.Config(num_heads=2, head_dim=2, rope_dim=4, v_dim=3, kv_latent_dim=5, q_latent_dim=4), references.mla),
}
SIZES = {
    "GQA": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "rope_dim": 4},
    "MLA": {"num_heads": 2, "head_dim": 2, "rope_dim": 4, "v_dim": 3},
}


def under(prefix: str, w: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of one part, by their names in it."""
    return {name.removeprefix(prefix): weight for name, weight in w.items() if name.startswith(prefix)}


@pytest.mark.parametrize("dropping", [False, True], ids=["all", "dropping"])
@pytest.mark.parametrize(("kind", "tied"), [("GQA", True), ("MLA", False)])
def test_logits_and_gradients(kind: str, tied: bool, dropping: bool) -> None:
    """One dense layer, then two MoE layers; with dropping, the second sequence is exempt in both."""
    attention, reference = ATTENTIONS[kind]
    config = Transformer.Config(
        vocab_size=7,
        dim=DIM,
        num_layers=3,
        num_dense_layers=1,
        dense=SwiGLU.Config(width=5),
        attention=attention,
        ffn=MoE.Config(
            num_experts=4,
            top_k=2,
            expert_dim=3,
            num_shared=1,
            num_devices=2,
            routed_scaling_factor=4.0,
            dropping=Dropping.Config(capacity_factor=0.5) if dropping else None,
        ),
        norm_eps=EPS,
        tie_embeddings=tied,
    )
    model = references.randomise(config.build().double(), seed=1).train()
    tokens = torch.tensor([[1, 5, 5, 2], [0, 6, 3, 1]])
    exempt = torch.tensor([False, True])
    output = model(tokens, exempt=exempt)
    assert len(output.routings) == 2

    leaves = dict(model.named_parameters())
    own = references.twin(leaves)
    thetas = references.rope_frequencies(4, 10000.0)
    x = own["embedding"][tokens]
    for index in range(3):
        w = under(f"layers.{index}.", own)

        def attend(h: torch.Tensor, w: dict = w) -> torch.Tensor:
            return reference(h, under("attention.", w), **SIZES[kind], thetas=thetas)

        def feed(h: torch.Tensor, w: dict = w, index: int = index) -> torch.Tensor:
            w = under("ffn.", w)
            if index == 0:
                gate, up = references.halves(w["w_gate_up"])
                rows = [references.swiglu(row, gate, up, w["w_down"]) for row in h.flatten(0, 1)]
                return torch.stack(rows).reshape(h.shape)
            s = references.affinities(h, w["router.w"])
            experts, _ = references.route(s.detach(), 2)
            dropped = references.drop(s.detach(), experts, 2, 0.5, exempt) if dropping else None
            assert not dropping or dropped[0].any()
            return references.moe(h, w, experts=experts, expert_dim=3, scaling=4.0, dropped=dropped)

        x = references.block(x, (w["attention_norm.w"], w["ffn_norm.w"]), EPS, attend, feed)
    x = references.rms_norm(x, own["norm.w"], EPS)
    logits = x @ own["embedding" if tied else "head"].T
    same_values_and_gradients(output.logits, logits, leaves, own, FLOAT32)
