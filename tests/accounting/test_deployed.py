"""Bytes of weights and caches against the tensors that hold them."""

import pytest
import torch

import dsv2
from dsv2.accounting.deployed import cache_bytes, kinds_of_attention, weight_bytes
from dsv2.kernels.fp8 import quantise_blocks
from dsv2.kernels.quantise import PIECES
from dsv2.models.attention.precision import KVPrecision

ATTENTIONS = ("mha", "gqa", "mqa", "mla")


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "more", [[], ["model/ffn=dense"], ["model.tie_embeddings=true"], ["model.shape.q_latent_dim=12"]]
)
def test_weights_take_what_their_tensors_take(attention, more):
    """Every matrix of a product as codes and scales; embedding, router and norms in bfloat16."""
    config = dsv2.load([f"model/attention={attention}", *more]).model
    held = 0
    for name, weight in config.build().named_parameters():
        if weight.dim() > 1 and name != "embedding" and not name.endswith("router.w"):
            blocks = quantise_blocks(weight.mT if weight.dim() == 3 else weight)
            held += blocks.codes.nbytes + blocks.scales.nbytes
        else:
            held += 2 * weight.numel()
    total = dsv2.account(config).total_params
    assert weight_bytes(config) == {"fp32": 4 * total, "bf16": 2 * total, "fp8": held}


def test_a_large_model_takes_half_in_fp8():
    sizes = weight_bytes(dsv2.load(["model=v2"]).model)
    assert 0.5 < sizes["fp8"] / sizes["bf16"] < 0.51


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_caches_in_all_bits_that_are_offered(attention):
    config = dsv2.load(["model=v2_lite", f"model/attention={attention}"]).model
    elements = dsv2.account(config).kv_elements_per_token
    rows = cache_bytes(config)
    assert [row.bits for row in rows] == [16, *PIECES]
    for row in rows:
        overhead = 0 if row.bits == 16 else 32 / 64  # a scale and an offset for each 64 channels
        assert row.average_bits == pytest.approx(row.bits + overhead)
        assert row.bytes_per_token == pytest.approx(elements * row.average_bits / 8)
        assert dsv2.account(config, kv=KVPrecision.Config(bits=row.bits)).kv_bytes_per_token == row.bytes_per_token


def test_mla_at_6_bits_fits_many_more_sequences_than_mha():
    """V2-Lite's sizes; the aim is five times as many."""
    sizes = {}
    for attention, bits in (("mha", 16), ("mla", 6)):
        config = dsv2.load(["model=v2_lite", f"model/attention={attention}"]).model
        sizes[attention] = dsv2.account(config, kv=KVPrecision.Config(bits=bits)).kv_bytes_per_token
    assert sizes["mha"] / sizes["mla"] == pytest.approx(17.5, abs=0.05)


def test_kinds_of_attention_of_one_size():
    """By hand: 27 layers of 16 heads of 128; a latent of 512 and a key of 64, 4 bytes of scale per 64 channels."""
    rows = {row.name: row.account.kv_bytes_per_token for row in kinds_of_attention("v2_lite")}
    per_head = 27 * 2 * 128 * 2
    assert rows == {
        "MHA": 16 * per_head,
        "GQA-8": 8 * per_head,
        "MQA": per_head,
        "MLA": 27 * 576 * 2,
        "MLA, 6 bits": 27 * (576 * 6 // 8 + 9 * 4),
    }


def test_what_the_forms_say_is_what_they_hold():
    config = dsv2.load(["model=v2_lite"]).model.attention
    for bits in PIECES:
        precision = KVPrecision.Config(bits=bits, rope_bits=16)
        held = [
            x.nbytes
            for shape, forms in zip(config.cache_shapes(), precision.forms(config), strict=True)
            for form in forms
            for x in form.encode(torch.randn(*shape[:-1], form.width))
        ]
        assert sum(held) == precision.bytes_per_token(config)
