"""The forms in which caches store tokens, and what these take."""

import pytest

from dsv2.config import ConfigError
from dsv2.kernels.quantise import Bfloat16, Grouped
from dsv2.models.attention import GQA, MLA
from dsv2.models.attention.precision import KVPrecision

LITE = MLA.Config(num_heads=16, head_dim=128, rope_dim=64, v_dim=128, kv_latent_dim=512)
HEADS = GQA.Config(num_heads=16, num_kv_heads=16, head_dim=128)


@pytest.mark.parametrize(
    ("settings", "latent", "rope", "per_token"),
    [
        ({}, Bfloat16(512), Bfloat16(64), 1152),
        ({"bits": 6}, Grouped(512, 6), Grouped(64, 6), 468),  # 432 of codes, 9 groups of 4 bytes
        ({"bits": 6, "rope_bits": 16}, Grouped(512, 6), Bfloat16(64), 384 + 32 + 128),
        (
            {"bits": 4, "rope_bits": 8, "group_size": 32, "range_bits": 32},
            Grouped(512, 4, 32, 32),
            Grouped(64, 8, 32, 32),
            464,
        ),
    ],
)
def test_mla_stores_a_latent_and_a_key(settings, latent, rope, per_token):
    precision = KVPrecision.Config(**settings)
    assert precision.forms(LITE) == ((latent,), (rope,))
    assert precision.bytes_per_token(LITE) == per_token


def test_heads_are_stored_one_by_one():
    assert KVPrecision.Config(bits=6).forms(HEADS) == ((Grouped(128, 6),), (Grouped(128, 6),))
    assert KVPrecision.Config(bits=6).bytes_per_token(HEADS) == 2 * 16 * (96 + 8)
    assert KVPrecision.Config().bytes_per_token(HEADS) == 2 * 16 * 128 * 2


def test_the_rotated_part_of_keys_may_be_wider():
    """All channels of a key, or the last ones; values are as they were."""
    wider = KVPrecision.Config(bits=4, rope_bits=8)
    assert wider.forms(HEADS) == ((Grouped(128, 8),), (Grouped(128, 4),))
    partial = GQA.Config(num_heads=4, num_kv_heads=2, head_dim=48, rope_dim=16)
    assert wider.forms(partial) == ((Grouped(32, 4, 32), Grouped(16, 8, 16)), (Grouped(48, 4, 48),))
    assert KVPrecision.Config(bits=4, rope_bits=4).forms(partial)[0] == (Grouped(48, 4, 48),)


def test_a_group_is_no_wider_than_its_vector():
    tiny = MLA.Config(num_heads=4, head_dim=16, rope_dim=8, v_dim=16, kv_latent_dim=24)
    assert KVPrecision.Config(bits=8).forms(tiny) == ((Grouped(24, 8, 24),), (Grouped(8, 8, 8),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 7}, "bits=7 is not valid: one of 16, 8, 6, 5, 4, 3, 2"),
        ({"bits": 32}, "bits=32 is not valid"),
        ({"rope_bits": 1}, "rope_bits=1 is not valid: one of 16, 8, 6, 5, 4, 3, 2, or null"),
        ({"group_size": 0}, "group_size=0 is not valid: positive"),
        ({"range_bits": 8}, "range_bits=8 is not valid: 16 or 32"),
    ],
)
def test_what_is_not_offered_is_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        KVPrecision.Config(**settings)
    assert str(caught.value).startswith(message)


def test_only_a_latent_is_rotated():
    KVPrecision.Config(bits=4, hadamard=True).forms(LITE)
    with pytest.raises(ConfigError, match="hadamard=True is not valid: false for attention without a latent"):
        KVPrecision.Config(bits=4, hadamard=True).forms(HEADS)
