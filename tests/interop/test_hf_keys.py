"""Keys of a `config.json`: which are read, which are fixed, which are tolerated; and reading one with its type."""

from typing import Any

import pytest

from dsv2.config import ConfigError
from dsv2.interop.hf_keys import FIXED, METADATA, READ, THEIRS, integer, number, refuse_unknown, refuse_unknown_rope

KINDS = ["deepseek_v2", "llama"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_fixed_or_tells_nothing_of_the_model_passes(kind: str) -> None:
    keys = dict.fromkeys(READ[kind] | METADATA, 1) | {"_anything": 1, "some_future_key": None}
    keys |= {key: allowed[0] for key, (allowed, _) in FIXED[kind].items()}
    refuse_unknown(keys, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_key_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"^expert_bias=0 is not valid: unknown key for model_type '{kind}'"):
        refuse_unknown({"expert_bias": 0}, kind)


def test_what_deepseek_has_llama_has_not() -> None:
    refuse_unknown({"kv_lora_rank": 512}, "deepseek_v2")
    with pytest.raises(ConfigError, match=r"^kv_lora_rank=512 is not valid: unknown key"):
        refuse_unknown({"kv_lora_rank": 512}, "llama")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("attention_dropout", 0.1),
        ("hidden_act", "gelu"),
        ("hidden_act", None),  # null is no activation
        ("moe_layer_freq", 2),
        ("scoring_func", "sigmoid"),
        ("quantization_config", {}),
    ],
)
def test_a_key_of_which_we_have_one_value_refuses_others(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refusal:
        refuse_unknown({key: value}, "deepseek_v2")
    assert refusal.value.key == key
    assert refusal.value.value == value


def test_parameters_of_rope_go_by_its_type() -> None:
    """Those of YaRN mean nothing to a RoPE that is not stretched; null is no value, and the whole head turns."""
    for parameters in ({"rope_theta": 1e4, "type": "default"}, {"factor": None}, {"partial_rotary_factor": 1}):
        refuse_unknown_rope(parameters, "default")
    refuse_unknown_rope({"factor": 40.0, "beta_fast": 32, "truncate": True}, "yarn")
    for parameters, kind, message in (
        ({"factor": 40.0}, "default", "factor=40.0 is not valid: unknown key for rope_type 'default'"),
        ({"partial_rotary_factor": 0.5}, "yarn", "partial_rotary_factor=0.5 is not valid: unknown key"),
        ({}, "llama3", "rope_type='llama3' is not valid: one of default, linear, yarn"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            refuse_unknown_rope(parameters, kind)


def test_an_integer_is_an_integer() -> None:
    assert integer({"n": 3}, "n") == 3
    assert integer({}, "n", 5) == 5
    for value in (3.0, "3", True, None, [3]):
        with pytest.raises(ConfigError, match=r"^n=.* is not valid: an integer is required$"):
            integer({"n": value}, "n", 5)
    with pytest.raises(ConfigError, match=r"an integer from -2,147,483,647 to 2,147,483,647 is required$"):
        integer({"n": 10**12}, "n")
    with pytest.raises(ConfigError, match=r"^n=None is not valid: an integer is required, but the key is missing"):
        integer({}, "n")


def test_a_number_is_a_float_and_null_is_the_default() -> None:
    assert number({"x": 3}, "x") == 3.0
    assert isinstance(number({"x": 3}, "x"), float)
    assert number({"x": 0.5}, "x", 1.0) == 0.5
    assert number({"x": None}, "x", 1.0) == number({}, "x", 1.0) == 1.0
    for value in ("3", True, [3]):
        with pytest.raises(ConfigError, match=r"^x=.* is not valid: a number is required$"):
            number({"x": value}, "x", 1.0)
    with pytest.raises(ConfigError, match=r"^x=inf is not valid: a number that is finite is required$"):
        number({"x": float("inf")}, "x")
    for config in ({}, {"x": None}):
        with pytest.raises(ConfigError, match=r"^x=None is not valid: a number is required, but the key is missing"):
            number(config, "x")


def test_every_name_that_errors_translate_to_is_read() -> None:
    """But for the name inside RoPE's parameters."""
    assert set(THEIRS.values()) - {"original_max_position_embeddings"} <= READ["deepseek_v2"]
