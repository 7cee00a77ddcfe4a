"""What memory, bandwidth and arithmetic allow: by hand for small models, and where the limits meet."""

import pytest

import dsv2
from dsv2.accounting.throughput import USABLE, Decoding, Node, decoding, prefill_tokens_per_second
from dsv2.config import ConfigError

NODE = Node(gpus=2, memory=1e6, bandwidth=1e5, peak_flops=1e9)
MLA = ["model.dim=8", "model.num_layers=2", "model.vocab_size=2048", "model/ffn=dense", "model.shape.ffn_dim=16"]


def test_a_step_by_hand() -> None:
    """GQA: 4 heads of 16 with 2 key-value heads, so 64 cached elements of 2 bytes per token and layer."""
    model = dsv2.load([*MLA, "model/attention=gqa"]).model
    step = decoding(model, weight_bytes=4e5, kv_bits=16, context=100, node=NODE)
    per_sequence = 2 * 64 * 2 * 100
    assert step.batch == int((USABLE * 2e6 - 4e5) / per_sequence) == 54
    assert step.read_seconds == pytest.approx((4e5 + 54 * per_sequence) / 2e5)
    products = 2 * (2 * (2 * 64 * 8 + 2 * 32 * 8 + 3 * 8 * 16) + 2048 * 8)
    scores = 2 * 2 * 4 * (16 + 16) * 100
    assert step.compute_seconds == pytest.approx(54 * (products + scores) / 2e9)
    assert step.tokens_per_second == pytest.approx(54 / step.read_seconds)
    assert prefill_tokens_per_second(model, context=100, node=NODE) == pytest.approx(2e9 / (products + scores / 2))


def test_mla_scores_every_head_against_the_latent() -> None:
    """Absorbed: 4 heads x (24 + 8) for scores and 24 for values, more than the 4 x (24 + 16) of expanded keys."""
    model = dsv2.load([*MLA, "model/attention=mla"]).model
    at = [decoding(model, weight_bytes=0, kv_bits=16, context=context, node=NODE) for context in (100, 200)]
    flops = [step.compute_seconds / step.batch * 2e9 for step in at]
    assert flops[1] - flops[0] == pytest.approx(2 * 2 * 4 * (24 + 8 + 24) * 100)
    assert at[0].batch == int(USABLE * 2e6 / (2 * 32 * 2 * 100))


def test_the_slower_of_the_two_is_the_limit() -> None:
    assert Decoding(batch=10, read_seconds=2.0, compute_seconds=5.0).tokens_per_second == 2.0
    assert Decoding(batch=10, read_seconds=5.0, compute_seconds=2.0).tokens_per_second == 2.0


def test_half_the_bits_are_twice_the_sequences() -> None:
    model = dsv2.load(MLA).model
    whole, half = (decoding(model, weight_bytes=0, kv_bits=bits, context=50, node=NODE).batch for bits in (16, 8))
    assert half in (2 * whole, 2 * whole + 1)


def test_what_has_no_room_is_refused() -> None:
    model = dsv2.load(MLA).model
    with pytest.raises(ConfigError, match=r"^context=1000000 is not valid: few enough tokens for a cache"):
        decoding(model, weight_bytes=1e6, kv_bits=16, context=1_000_000, node=NODE)
    with pytest.raises(ConfigError, match=r"^context=0 is not valid: 1 to"):
        decoding(model, weight_bytes=1e6, kv_bits=16, context=0, node=NODE)
