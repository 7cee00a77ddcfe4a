"""Parameters, FLOPs and cache sizes against the modules and by hand; published figures are in test_published."""

import pytest
import torch

import dsv2
from dsv2.models.attention import GQA, MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer

SMALL = ["model.dim=16", "model.num_layers=3", "model.vocab_size=2048"]


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa", "mla"])
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["model/ffn=dense"],
        ["model/ffn=gshard"],
        ["model/ffn=switch", "model.ffn.num_shared=1"],
        ["model/ffn=hash"],
        ["model.ffn.num_shared=0"],
        ["model.num_dense_layers=0", "model.tie_embeddings=true"],
        ["model.shape.q_latent_dim=12"],
    ],
)
def test_sums_are_the_modules_own(attention, more):
    model = dsv2.load([f"model/attention={attention}", *SMALL, *more]).model
    built = model.build()
    assert dsv2.account(model).total_params == sum(weight.numel() for weight in built.parameters())
    names = {name: tuple(weight.shape) for name, weight in built.layers[-1].named_parameters()}
    assert {weight.name: weight.shape for weight in model.layer_weights(model.num_layers - 1)} == names


PRESETS = ["v2", "v2_lite", "deepseek_moe_2b", "deepseek_moe_16b", "deepseek_7b", "deepseek_67b"]


@pytest.mark.parametrize("more", [[], ["model/ffn=gshard"], ["model/ffn=switch"], ["model/ffn=hash"]])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_agree_with_the_meta_device(preset, more):
    model = dsv2.load([f"model={preset}", *more]).model
    with torch.device("meta"):
        built = model.build()
    assert dsv2.account(model).total_params == sum(weight.numel() for weight in built.parameters())


@pytest.mark.parametrize("preset", ["tiny", "small", *PRESETS])
def test_baselines_have_the_parameters_of_the_fine_experts(preset):
    """All of them in total; GShard, of two experts per token, also actively, the others fewer."""
    fine, gshard, switch, hashed = (
        dsv2.account(dsv2.load([f"model={preset}", f"model/ffn={kind}"]).model)
        for kind in ("moe", "gshard", "switch", "hash")
    )
    for other in (gshard, switch, hashed):
        assert other.total_params == pytest.approx(fine.total_params, rel=0.007)
    assert gshard.active_params == pytest.approx(fine.active_params, rel=0.025)
    assert hashed.active_params < switch.active_params < fine.active_params


def test_key_norm_is_counted():
    model = dsv2.load(["model/attention=gqa", "model.attention.key_norm=true"]).model
    plain = dsv2.load(["model/attention=gqa"]).model
    assert dsv2.account(model).total_params == sum(weight.numel() for weight in model.build().parameters())
    assert dsv2.account(model).total_params - dsv2.account(plain).total_params == 3 * 16  # a vector in every layer
    assert dsv2.account(model).flops_per_token == dsv2.account(plain).flops_per_token


@pytest.mark.parametrize(
    ("overrides", "elements"),
    [
        (["model=v2_lite"], 15_552),
        (["model=v2"], 34_560),
        (["model=v2_lite", "model/attention=mha"], 110_592),
        (["model=v2", "model/attention=mha", "model.attention.num_heads=56"], 860_160),
    ],
)
def test_cache_elements_of_table_9(overrides, elements):
    assert dsv2.account(dsv2.load(overrides).model).kv_elements_per_token == elements


def by_hand(attention: MLA.Config | GQA.Config, tied: bool) -> Transformer.Config:
    """Width 8, vocabulary 11; a dense layer of width 10, a MoE layer of 1 + 4 experts of width 3, 2 routed active."""
    return Transformer.Config(
        vocab_size=11,
        dim=8,
        num_layers=2,
        num_dense_layers=1,
        dense=SwiGLU.Config(width=10),
        attention=attention,
        ffn=MoE.Config(num_experts=4, top_k=2, expert_dim=3, num_shared=1),
        tie_embeddings=tied,
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("attention", "matrices", "norms", "scores", "cached"),
    [
        # q 2 (4 + 2) x 8, latent 5 x 8, key 2 x 8, up 2 (4 + 3) x 5, out 8 x 6; a key scores 2 heads of 4 + 2 + 3
        (MLA.Config(num_heads=2, head_dim=4, rope_dim=2, v_dim=3, kv_latent_dim=5), 96 + 40 + 16 + 70 + 48, 5, 18, 7),
        # q and out 24 x 8, keys and values 12 x 8; a key scores 4 heads of 6 + 6, whatever heads share it
        (GQA.Config(num_heads=4, num_kv_heads=2, head_dim=6), 2 * 192 + 2 * 96, 0, 48, 24),
    ],
    ids=["MLA", "GQA"],
)
def test_a_small_model_by_hand(attention, matrices, norms, scores, cached, tied):
    context = 16
    dense, router, expert, table = 3 * 8 * 10, 4 * 8, 3 * 8 * 3, 11 * 8
    vectors = 2 * (norms + 2 * 8) + 8
    head = 0 if tied else table
    result = dsv2.account(by_hand(attention, tied), context=context, kv_bits=6)
    assert result.total_params == 2 * matrices + vectors + dense + router + 5 * expert + table + head
    assert result.active_params == 2 * matrices + vectors + dense + router + 3 * expert + table + head
    assert result.active_params_without_embedding == result.active_params - table
    products = 2 * matrices + dense + router + 3 * expert + table  # a tied head multiplies all the same
    assert result.flops_per_token == 3 * 2 * (products + 2 * scores * context)
    assert result.kv_elements_per_token == 2 * cached
    assert result.kv_bytes_per_token == 2 * cached * 6 / 8
