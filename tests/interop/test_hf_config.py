"""Between `config.json` and our typed config: what each key means, the way back, and refusals by name."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from dsv2.interop.hf_config import config_from_hf, config_to_hf, read_config, read_json
from dsv2.interop.huggingface import from_hf
from dsv2.models.attention import GQA, MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe import V3, GShard, Hash, LossFree, MoE, Sigmoid, Switch
from dsv2.models.moe.dropping import Dropping
from dsv2.models.rope import Rope, Yarn
from dsv2.models.transformer import Transformer
from tests.references.twins import LIMITED, twin, yarn

CONFIG = twin(q_lora_rank=20, **LIMITED).config.to_dict()
PLAIN = {  # as little as a model needs
    "model_type": "deepseek_v2",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 12,
}


def mla() -> Transformer.Config:
    return config_from_hf(CONFIG)


# ---- in --------------------------------------------------------------------------------------------------------------


def test_every_key_has_its_place() -> None:
    """By hand, with what transformers assumes where a key is missing."""
    assert config_from_hf(PLAIN) == Transformer.Config(
        vocab_size=61,
        dim=32,
        num_layers=3,
        attention=MLA.Config(num_heads=4, head_dim=8, rope_dim=6, v_dim=12, kv_latent_dim=16, q_latent_dim=None),
        ffn=MoE.Config(num_experts=8, top_k=3, expert_dim=12, num_shared=2),
        num_dense_layers=1,
        dense=SwiGLU.Config(width=40),
        rope=Rope.Config(base=10000.0),
        norm_eps=1e-6,
        tie_embeddings=False,
        init_std=0.02,
    )
    given = {"rms_norm_eps": 1e-5, "initializer_range": 0.006, "tie_word_embeddings": True, "q_lora_rank": 20}
    model = config_from_hf(PLAIN | given | {"rope_theta": 5e4, "routed_scaling_factor": 16.0})
    assert (model.norm_eps, model.init_std, model.tie_embeddings) == (1e-5, 0.006, True)
    assert (model.attention.q_latent_dim, model.rope.base, model.ffn.routed_scaling_factor) == (20, 5e4, 16.0)


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ({}, (1, None)),
        ({"n_group": 4, "topk_group": 2}, (4, None)),  # greedy: groups limit nothing, losses are counted over them
        ({"n_group": 3}, (1, None)),  # they do not divide the experts, and nothing asks for them
        ({"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}, (4, 2)),
    ],
)
def test_groups_are_devices(given: dict[str, Any], devices: tuple[int, int | None]) -> None:
    ffn = config_from_hf(PLAIN | given).ffn
    assert (ffn.num_devices, ffn.max_devices) == devices


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention_bias": True}, "attention_bias=True is not valid: false"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"attention_bias": "true"}, "attention_bias='true'"),
        ({"norm_topk_prob": True}, "norm_topk_prob=True is not valid: false, since gates are not renormalised"),
        ({"norm_topk_prob": "True"}, "norm_topk_prob='True' is not valid: false"),
        ({"norm_topk_prob": 0}, "norm_topk_prob=0 is not valid: true or false"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no' is not valid: true or false"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 is not valid: true or false"),
        ({"tie_word_embeddings": ["false"]}, "tie_word_embeddings=['false'] is not valid: true or false"),
        ({"routed_scaling_factor": math.nan}, "routed_scaling_factor=nan is not valid: a number"),
        ({"routed_scaling_factor": math.inf}, "routed_scaling_factor=inf is not valid: a number"),
        ({"routed_scaling_factor": -1}, "routed_scaling_factor=-1.0 is not valid: positive"),
        ({"routed_scaling_factor": 10**400}, "routed_scaling_factor=1000"),
        ({"routed_scaling_factor": "1"}, "routed_scaling_factor='1' is not valid: a number"),
        ({"rms_norm_eps": math.inf}, "rms_norm_eps=inf"),
        ({"initializer_range": math.nan}, "initializer_range=nan"),
        ({"hidden_size": 2**31}, "hidden_size=2147483648 is not valid: an integer"),
        ({"hidden_size": -32}, "hidden_size=-32 is not valid: positive"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True is not valid: an integer"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace=-1"),
        ({"n_shared_experts": -1}, "n_shared_experts=-1"),
        ({"max_position_embeddings": "abc"}, "max_position_embeddings='abc' is not valid: an integer"),
        ({"max_position_embeddings": [3]}, "max_position_embeddings=[3] is not valid: an integer"),
        ({"max_position_embeddings": -1}, "max_position_embeddings=-1 is not valid: positive"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0 is not valid: positive"),
        ({"max_position_embeddings": 4096.0}, "max_position_embeddings=4096.0 is not valid: an integer"),
        ({"eos_token_id": "2"}, "eos_token_id='2' is not valid: the id of a token"),
        ({"eos_token_id": [1, None, "x"]}, "eos_token_id=[1, None, 'x'] is not valid: the id of a token"),
        ({"bos_token_id": -2}, "bos_token_id=-2"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type=['yarn'] is not valid: one of"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": math.inf}}, "rope_theta=inf"),
        ({"rope_parameters": yarn(attention_factor=-1.0)}, "attention_factor=-1.0 is not valid: positive"),
        ({"rope_parameters": yarn(beta_slow=-1.0)}, "beta_slow=-1.0 is not valid: positive"),
        ({"rope_parameters": yarn(mscale_all_dim=-10.0)}, "mscale_all_dim=-10.0 is not valid: finite"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2 is not valid: 1"),
        ({"scoring_func": "sigmoid"}, "scoring_func='sigmoid' is not valid: 'softmax'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not valid: 'silu'"),
        ({"topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not valid: one of greedy, group_limited_greedy"),
        ({"topk_method": None}, "topk_method=None"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config="),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers=1 is not valid: unknown key"),
        ({"model_type": "deepseek_v3"}, "model_type='deepseek_v3' is not valid: 'deepseek_v2'"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2 is not valid: num_attention_heads=4"),
        ({"hidden_size": "32"}, "hidden_size='32' is not valid: an integer"),
        ({"n_group": None}, "n_group=None is not valid: an integer"),
        ({"n_group": 3}, "n_group=3 is not valid: a divisor of num_experts=8"),
        ({"topk_group": 5}, "topk_group=5 is not valid: between 1 and num_devices=4"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok=5 is not valid: between 1 and 4"),
        ({"qk_rope_head_dim": 7}, "qk_rope_head_dim=7 is not valid: even"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor=None is not valid: a number"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor=0.5 is not valid: at least 1"),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "factor=2.0 is not valid: unknown key"),
        ({"rope_parameters": yarn(truncate=False)}, "truncate=False is not valid"),
        ({"rope_parameters": yarn(factor=0.5)}, "factor=0.5 is not valid: at least 1"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor=None is not valid: a number"),
        ({"rope_parameters": yarn(factor=1.0, attention_factor=2.0)}, "attention_factor=2.0 is not valid"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "rope_type='dynamic'"),
        ({"rope_scaling": yarn(factor=2.0), "rope_parameters": yarn()}, "rope_scaling="),
    ],
)
def test_config_refusals_name_key_and_value(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"is not valid") as refusal:
        config_from_hf(CONFIG | changed)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("key", ["vocab_size", "kv_lora_rank", "n_routed_experts", "num_experts_per_tok", "v_head_dim"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}=None is not valid: an integer is required, but the key is missing"):
        config_from_hf({name: value for name, value in CONFIG.items() if name != key})


def test_keys_that_compute_nothing_are_tolerated() -> None:
    extra = {"max_length": 20, "id2label": {"0": "x"}, "_name_or_path": "x", "some_future_key": None}
    assert config_from_hf(CONFIG | extra) == config_from_hf(CONFIG)


@pytest.mark.parametrize(("written", "meant"), [("false", False), ("False", False), ("true", True), (None, False)])
def test_a_flag_may_be_written_as_text(written: str | None, meant: bool) -> None:
    assert config_from_hf(PLAIN | {"tie_word_embeddings": written}).tie_embeddings is meant
    assert config_from_hf(PLAIN | {"norm_topk_prob": "false", "attention_bias": "false"}) == config_from_hf(PLAIN)


def test_gates_of_a_single_expert_may_be_called_normalised() -> None:
    """The model's own code then leaves them as they are."""
    single = PLAIN | {"num_experts_per_tok": 1}
    assert config_from_hf(single | {"norm_topk_prob": True}) == config_from_hf(single)


def test_token_ids_may_be_several_or_none() -> None:
    for ids in (None, 2, [2, 5], -1):
        assert config_from_hf(PLAIN | {"eos_token_id": ids, "pad_token_id": ids}) == config_from_hf(PLAIN)


def test_a_config_without_experts_is_dense() -> None:
    assert config_from_hf(CONFIG | {"n_routed_experts": None}).ffn == SwiGLU.Config(width=CONFIG["intermediate_size"])


def test_llama_is_read_for_accounting_only(tmp_path: Path) -> None:
    llama = LlamaConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    config = config_from_hf(llama.to_dict())
    assert config.attention == GQA.Config(num_heads=4, num_kv_heads=2, head_dim=16)
    assert config.ffn == SwiGLU.Config(width=96)
    llama.save_pretrained(tmp_path)
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == config
    with pytest.raises(ValueError, match="model_type='llama' is not valid"):
        from_hf(tmp_path)
    with pytest.raises(ValueError, match="rope_type='spiral' is not valid: one of default, linear"):
        config_from_hf(llama.to_dict() | {"rope_parameters": {"rope_type": "spiral", "factor": 8.0}})


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "scaling",
    [
        LLAMA3 | {"rope_type": "llama3"},
        {"type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
        {"rope_type": "longrope", "factor": 4.0, "short_factor": [1.0], "long_factor": [2.0]},
    ],
)
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama_is_counted_however_its_context_is_extended(key: str, scaling: dict[str, Any]) -> None:
    """Scaling changes neither parameters nor FLOPs; files of 2024 and of 2026 have it under different keys."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = {"model_type": "llama", "vocab_size": 61, "rope_theta": 5e5, **shape}
    assert config_from_hf(llama | {key: scaling}) == config_from_hf(llama)
    assert config_from_hf(llama | {key: scaling}).rope.base == 5e5


def test_a_file_that_holds_no_object_is_named(tmp_path: Path) -> None:
    deep = "[" * 100_000
    for text, message in (("[1]", "not a JSON object"), ("{", "not JSON"), ("\udcff", "not JSON"), (deep, "not JSON")):
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=rf"config\.json: {message}"):
            read_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"other\.json: No such file"):
        read_json(tmp_path / "other.json")


# ---- out -------------------------------------------------------------------------------------------------------------

MODELS = {
    "plain": PLAIN,
    "compressed queries, limited": CONFIG,
    "no dense layers": PLAIN | {"first_k_dense_replace": 0},
    "all dense": PLAIN | {"first_k_dense_replace": 3, "n_routed_experts": None},
    "no shared experts": PLAIN | {"n_shared_experts": 0},
    "tied": PLAIN | {"tie_word_embeddings": True},
    "YaRN": PLAIN | {"rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707)},
    "YaRN, a factor written out": PLAIN | {"rope_parameters": yarn(attention_factor=1.5)},
}


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_the_way_out_and_in_again_changes_nothing(config: dict[str, Any]) -> None:
    model = config_from_hf(config)
    written = json.loads(json.dumps(config_to_hf(model)))
    again = config_from_hf(written)
    if model.rope.yarn is not None:  # an mscale is worked out from the factor, so rounded
        assert again.rope.yarn.mscale == pytest.approx(model.rope.yarn.mscale, rel=1e-12)
        again = dataclasses.replace(again, rope=model.rope)
    assert again == model


def test_a_context_is_as_long_as_yarn_stretches_it() -> None:
    """4K, what DeepSeek-V2 was trained on, where nothing is stretched."""
    stretched = dataclasses.replace(mla(), rope=Rope.Config(yarn=Yarn.Config(factor=40.0, original_length=4096)))
    assert config_to_hf(stretched)["max_position_embeddings"] == 163_840
    assert config_to_hf(mla())["max_position_embeddings"] == 4096


def test_what_deepseek_v2_cannot_hold_is_refused() -> None:
    fields = {name: value for name, value in vars(mla()).items() if name != "attention"}
    with pytest.raises(ValueError, match=r"^attention=.*MLA"):
        config_to_hf(Transformer.Config(**fields, attention=GQA.Config(num_heads=4, num_kv_heads=4, head_dim=8)))
    normed = GQA.Config(num_heads=4, num_kv_heads=4, head_dim=8, key_norm=True)
    with pytest.raises(ValueError, match=r"^attention=.*key_norm=True.*MLA"):
        config_to_hf(Transformer.Config(**fields, attention=normed))
    for kind in (GShard, Switch, Hash):
        baseline = Transformer.Config(**vars(mla()) | {"ffn": kind.Config(num_experts=4, expert_dim=8)})
        with pytest.raises(ValueError, match=rf"^ffn={kind.__name__}\.Config.*DeepSeekMoE or a dense SwiGLU"):
            config_to_hf(baseline)
    for kind in (LossFree, Sigmoid, V3):
        variant = Transformer.Config(**vars(mla()) | {"ffn": kind.Config(num_experts=4, top_k=2, expert_dim=8)})
        with pytest.raises(ValueError, match=rf"^ffn={kind.__name__}\.Config.*, which has no other gates and no bias$"):
            config_to_hf(variant)
    with pytest.raises(ValueError, match=r"^dense.width=40 is not valid: 48"):
        config_to_hf(Transformer.Config(**vars(mla()) | {"ffn": SwiGLU.Config(width=48)}))
    with pytest.raises(ValueError, match=r"^dim=30 is not valid: a multiple of num_heads=4"):
        config_to_hf(dataclasses.replace(mla(), dim=30))


def test_token_dropping_is_left_out() -> None:
    ffn = mla().ffn
    assert isinstance(ffn, MoE.Config)
    dropping = Transformer.Config(**vars(mla()) | {"ffn": MoE.Config(**vars(ffn) | {"dropping": Dropping.Config()})})
    assert config_to_hf(dropping) == config_to_hf(mla())
