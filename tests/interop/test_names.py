"""The table of names: which tensor of a checkpoint holds what, row by row as the layout says, in both directions.

H heads, C key-value latent width, Q query latent width, E routed experts, W expert width.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

from dsv2.interop.names import Part, Row, table
from dsv2.models.attention import GQA, MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import Hash, MoE
from dsv2.models.transformer import Transformer
from tests import references

H, NOPE, ROPE, V, C, Q, D = 3, 4, 2, 5, 6, 7, 8
E, W = 4, 3
CONFIG = Transformer.Config(
    vocab_size=11,
    dim=D,
    num_layers=2,
    num_dense_layers=1,
    dense=SwiGLU.Config(width=9),
    attention=MLA.Config(num_heads=H, head_dim=NOPE, rope_dim=ROPE, v_dim=V, kv_latent_dim=C, q_latent_dim=Q),
    ffn=MoE.Config(num_experts=E, top_k=2, expert_dim=W, num_shared=2),
)
LITE = dataclasses.replace(CONFIG, attention=dataclasses.replace(CONFIG.attention, q_latent_dim=None))


def weights_of(config: Transformer.Config, seed: int = 1) -> dict[str, Tensor]:
    """Float64 weights of a model, no two elements alike."""
    return {name: w.detach() for name, w in references.randomise(config.build().double(), seed).named_parameters()}


def checkpoint(config: Transformer.Config, *, fused: bool = False) -> dict[str, Tensor]:
    """Every tensor, by its key."""
    weights = weights_of(config)
    rows = list(table(config, fused=fused))
    assert len({row.key for row in rows}) == len(rows)
    return {row.key: row.gather(weights) for row in rows}


def test_keys_and_shapes_are_those_of_the_layout() -> None:
    """By hand, a dense layer, a layer of experts, and what stands outside of layers."""
    attention = {
        "input_layernorm.weight": (D,),
        "post_attention_layernorm.weight": (D,),
        "self_attn.q_a_proj.weight": (Q, D),
        "self_attn.q_a_layernorm.weight": (Q,),
        "self_attn.q_b_proj.weight": (H * (NOPE + ROPE), Q),
        "self_attn.kv_a_proj_with_mqa.weight": (C + ROPE, D),
        "self_attn.kv_a_layernorm.weight": (C,),
        "self_attn.kv_b_proj.weight": (H * (NOPE + V), C),
        "self_attn.o_proj.weight": (D, H * V),
    }

    def swiglu(name: str, width: int) -> dict[str, tuple[int, ...]]:
        outer = {f"{name}.gate_proj.weight": (width, D), f"{name}.up_proj.weight": (width, D)}
        return outer | {f"{name}.down_proj.weight": (D, width)}

    experts = {"mlp.gate.weight": (E, D)} | swiglu("mlp.shared_experts", 2 * W)
    for e in range(E):
        experts |= swiglu(f"mlp.experts.{e}", W)
    expected = {"model.embed_tokens.weight": (11, D), "lm_head.weight": (11, D), "model.norm.weight": (D,)}
    expected |= {f"model.layers.0.{key}": shape for key, shape in (attention | swiglu("mlp", 9)).items()}
    expected |= {f"model.layers.1.{key}": shape for key, shape in (attention | experts).items()}
    assert {key: tuple(tensor.shape) for key, tensor in checkpoint(CONFIG).items()} == expected
    weights = weights_of(CONFIG)
    assert {row.key: row.shape(weights) for row in table(CONFIG)} == expected


def test_heads_alternate_between_what_has_a_position_and_what_has_none() -> None:
    """Per head first the rows without position, then those with one; so keys and values; the latent before its key."""
    for config, query in ((CONFIG, "q_b_proj"), (LITE, "q_proj")):
        w, stored = weights_of(config), checkpoint(config)
        layer, attention = "model.layers.1.self_attn.", "layers.1.attention."
        q, kv = stored[f"{layer}{query}.weight"], stored[f"{layer}kv_b_proj.weight"]
        for head in range(H):
            own = q[head * (NOPE + ROPE) : (head + 1) * (NOPE + ROPE)]
            assert torch.equal(own[:NOPE], w[f"{attention}w_uq"][head * NOPE : (head + 1) * NOPE])
            assert torch.equal(own[NOPE:], w[f"{attention}w_qr"][head * ROPE : (head + 1) * ROPE])
            own = kv[head * (NOPE + V) : (head + 1) * (NOPE + V)]
            assert torch.equal(own[:NOPE], w[f"{attention}w_uk"][head * NOPE : (head + 1) * NOPE])
            assert torch.equal(own[NOPE:], w[f"{attention}w_uv"][head * V : (head + 1) * V])
        latent = stored[f"{layer}kv_a_proj_with_mqa.weight"]
        assert torch.equal(latent[:C], w[f"{attention}w_dkv"])
        assert torch.equal(latent[C:], w[f"{attention}w_kr"])


def test_gate_and_up_are_halves_and_experts_are_turned() -> None:
    w, stored = weights_of(CONFIG), checkpoint(CONFIG)
    for theirs, ours in (("0.mlp", "0.ffn"), ("1.mlp.shared_experts", "1.ffn.shared")):
        both = torch.cat([stored[f"model.layers.{theirs}.{name}_proj.weight"] for name in ("gate", "up")])
        assert torch.equal(both, w[f"layers.{ours}.w_gate_up"])
        assert torch.equal(stored[f"model.layers.{theirs}.down_proj.weight"], w[f"layers.{ours}.w_down"])
    for e in range(E):
        own = f"model.layers.1.mlp.experts.{e}."
        gate_up = w["layers.1.ffn.experts.w_gate_up"][e]  # applied as x @ w: (d, 2 W), gate columns first
        assert torch.equal(stored[f"{own}gate_proj.weight"], gate_up[:, :W].T)
        assert torch.equal(stored[f"{own}up_proj.weight"], gate_up[:, W:].T)
        assert torch.equal(stored[f"{own}down_proj.weight"], w["layers.1.ffn.experts.w_down"][e].T)


def test_fused_experts_are_two_tensors_of_the_same_numbers() -> None:
    apart, fused = checkpoint(CONFIG), checkpoint(CONFIG, fused=True)
    experts = "model.layers.1.mlp.experts."
    assert fused[f"{experts}gate_up_proj"].shape == (E, 2 * W, D)
    assert fused[f"{experts}down_proj"].shape == (E, D, W)
    for e in range(E):
        gate_up = torch.cat([apart[f"{experts}{e}.{name}_proj.weight"] for name in ("gate", "up")])
        assert torch.equal(fused[f"{experts}gate_up_proj"][e], gate_up)
        assert torch.equal(fused[f"{experts}down_proj"][e], apart[f"{experts}{e}.down_proj.weight"])
    others = {key for key in apart if not key.startswith(experts)}
    assert fused.keys() == others | {f"{experts}gate_up_proj", f"{experts}down_proj"}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("config", [CONFIG, LITE, dataclasses.replace(CONFIG, tie_embeddings=True)])
def test_what_is_gathered_can_be_scattered_and_fills_every_weight(config: Transformer.Config, fused: bool) -> None:
    """Every element of every parameter is written, and each once: their numbers are equal."""
    weights = weights_of(config)
    empty = {name: torch.full_like(weight, torch.nan) for name, weight in weights.items()}
    elements = 0
    for row in table(config, fused=fused):
        tensor = row.gather(weights)
        assert tensor.is_contiguous()
        row.scatter(tensor, empty)
        elements += tensor.numel()
    assert all(torch.equal(empty[name], weight) for name, weight in weights.items())
    assert elements == sum(weight.numel() for weight in weights.values())


def test_scattering_casts_to_the_weights_dtype() -> None:
    weights = {"w": torch.zeros(2, 3, dtype=torch.bfloat16)}
    Row("theirs", (Part("w"),)).scatter(torch.full((2, 3), 1.001), weights)
    assert weights["w"].tolist() == [[1.0] * 3] * 2


def test_tied_embeddings_have_no_head() -> None:
    tied = checkpoint(dataclasses.replace(CONFIG, tie_embeddings=True))
    assert checkpoint(CONFIG).keys() - tied.keys() == {"lm_head.weight"}


def test_without_shared_experts_three_empty_tensors_stay() -> None:
    """transformers keeps them; scattering one writes nothing."""
    config = dataclasses.replace(CONFIG, ffn=dataclasses.replace(CONFIG.ffn, num_shared=0))
    weights = weights_of(config)
    rows = {row.key: row for row in table(config) if "shared_experts" in row.key}
    shapes = {key.rpartition("shared_experts.")[2]: row.shape(weights) for key, row in rows.items()}
    assert shapes == {"gate_proj.weight": (0, D), "up_proj.weight": (0, D), "down_proj.weight": (D, 0)}
    for row in rows.values():
        assert row.gather(weights).shape == row.shape(weights)
        row.scatter(row.gather(weights), weights)


def test_what_deepseek_v2_has_not_is_refused() -> None:
    gqa = dataclasses.replace(CONFIG, attention=GQA.Config(num_heads=2, num_kv_heads=1, head_dim=4))
    with pytest.raises(ValueError, match=r"^attention=.*: a deepseek_v2 checkpoint has MLA"):
        list(table(gqa))
    hashed = dataclasses.replace(CONFIG, ffn=Hash.Config(num_experts=4, expert_dim=3))
    with pytest.raises(ValueError, match=r"^ffn=.*: a deepseek_v2 checkpoint has DeepSeekMoE or a dense SwiGLU"):
        list(table(hashed))
