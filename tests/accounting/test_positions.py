"""What `account` says of a model's positions."""

import pytest

import dsv2
from dsv2.accounting.positions import positions_of

SMALL = ["model=tiny", "model.attention.rope_dim=32", "model.rope.base=100"]
YARN = ["model/rope=yarn", "model.rope.yarn.original_length=128", "model.rope.yarn.factor=8"]


def text(*words: str) -> str:
    return positions_of(dsv2.load(list(words)).model).text()


def test_the_extended_presets() -> None:
    for preset in ("v2_128k", "v2_lite_32k"):
        model = dsv2.load([f"model={preset}"]).model
        assert positions_of(model).as_dict() == {
            "kind": "yarn",
            "pairs": 32,
            "limit": 163840,
            "factor": 40.0,
            "original_length": 4096,
            "partition": {"kept": 11, "ramped": 12, "interpolated": 9},
            "betas": pytest.approx((32.0, 1.0)),
        }
    assert text("model=v2_128k").startswith(
        "RoPE: YaRN by 40 from 4,096 to 163,840 tokens; of 32 pairs 11 keep their frequency, 12 are on the ramp, 9 are "
        "interpolated"
    )


def test_extended_presets_are_the_others_but_for_rope() -> None:
    for longer, preset in (("v2_128k", "v2"), ("v2_lite_32k", "v2_lite")):
        run, plain = dsv2.load([f"model={longer}"]), dsv2.load([f"model={preset}"])
        assert run.model.shapes() == plain.model.shapes()
        assert (run.trainer.batches().num_steps, run.trainer.sequence_length) == (1000, 32768)
        assert run.loss == plain.loss
        assert dsv2.load([f"model={longer}", "model/rope=plain"]).model == plain.model


def test_a_small_model_is_told_what_its_published_betas_do() -> None:
    """With beta 32 of 128 tokens, nothing but the fastest pair keeps its frequency."""
    assert "of 16 pairs 1 keep their frequency, 10 are on the ramp, 5 are interpolated" in text(*SMALL, *YARN)
    assert "(in V2's proportions with beta_fast=4.51, beta_slow=0.798)" in text(*SMALL, *YARN)
    assert "of 16 pairs 6 keep their frequency, 5 are" in text(*SMALL, *YARN, "model.rope.yarn.beta_fast=4.4")


def test_other_kinds() -> None:
    assert text("model=tiny") == "RoPE: 4 pairs, without extension"
    assert text("model=tiny", "model/attention=gqa") == "RoPE: 8 pairs, without extension"
    assert text("model=tiny", "model/rope=ntk") == "RoPE: NTK-aware scaling by 40 from 4,096 to 163,840 tokens, 4 pairs"
    assert text("model=tiny", "model/rope=interpolation").startswith("RoPE: position interpolation by 40 from 4,096")
