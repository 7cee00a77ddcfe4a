"""Keys of a Hugging Face `config.json`: which are read, ignored or refused, and typed access to them."""

import math
from collections.abc import Mapping
from typing import Any

from dsv2.config import ConfigError

# Keys that do not affect the function computed in evaluation: provenance, tokens, generation, training.
_METADATA = """
architectures auto_map aux_loss_alpha bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
ep_size experts_implementation exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id id2label is_decoder label2id length_penalty license max_length max_position_embeddings min_length
model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
output_hidden_states output_router_logits output_scores pad_token_id prefix pretraining_tp problem_type
remove_invalid_values repetition_penalty return_dict return_dict_in_generate router_aux_loss_coef sep_token_id seq_aux
suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
transformers_version typical_p unsloth_version use_bfloat16 use_cache
"""
_COMMON = """
vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads rms_norm_eps
initializer_range tie_word_embeddings head_dim rope_theta rope_scaling rope_parameters
"""
_DEEPSEEK = """
qk_nope_head_dim qk_rope_head_dim qk_head_dim v_head_dim kv_lora_rank q_lora_rank n_routed_experts num_experts_per_tok
moe_intermediate_size n_shared_experts n_group topk_group topk_method routed_scaling_factor first_k_dense_replace
norm_topk_prob
"""
_YARN = """
factor original_max_position_embeddings beta_fast beta_slow mscale mscale_all_dim attention_factor truncate
"""
# RoPE scalings of llama, which change neither parameters nor FLOPs.
LLAMA_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
LARGEST = 2**31 - 1  # of the integers
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
METADATA = frozenset(_METADATA.split())
READ = {"llama": frozenset(_COMMON.split()), "deepseek_v2": frozenset(_COMMON.split() + _DEEPSEEK.split())}
ROPE_READ = {"default": frozenset({"rope_type", "type", "rope_theta"})}
ROPE_READ["linear"] = ROPE_READ["default"] | {"factor"}
ROPE_READ["yarn"] = ROPE_READ["default"] | frozenset(_YARN.split())

# Keys that must have a fixed value: (allowed values, text of the error).
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "attention_bias": ((False, None), "false, since projections have no biases"),
    "attention_dropout": ((0, None), "0, since there is no dropout"),
    "hidden_act": (("silu",), "'silu'"),
    "is_encoder_decoder": ((False, None), "false"),
    "mlp_bias": ((False, None), "false, since projections have no biases"),
    "partial_rotary_factor": ((1, None), "1"),
    "quantization_config": ((None,), "absent, since quantised weights are not supported"),
}
FIXED = {
    "llama": _FIXED,
    "deepseek_v2": _FIXED
    | {
        "moe_layer_freq": ((1,), "1, since every layer after the first dense ones is MoE"),
        "scoring_func": (("softmax",), "'softmax'"),
    },
}

# Our field -> Hugging Face's key, to translate errors raised by our configs.
THEIRS = {
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim",
    "kv_latent_dim": "kv_lora_rank",
    "q_latent_dim": "q_lora_rank",
    "num_experts": "n_routed_experts",
    "top_k": "num_experts_per_tok",
    "expert_dim": "moe_intermediate_size",
    "num_shared": "n_shared_experts",
    "num_devices": "n_group",
    "max_devices": "topk_group",
    "width": "intermediate_size",
    "num_dense_layers": "first_k_dense_replace",
    "base": "rope_theta",
    "original_length": "original_max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
}


def refuse_unknown(config: Mapping[str, Any], model_type: str) -> None:
    """Raise ConfigError for a key that is not read, not metadata and not null, or has another than its fixed value."""
    for key, value in config.items():
        if key in FIXED[model_type]:
            allowed, valid = FIXED[model_type][key]
            if _boolean(value) not in allowed:
                raise ConfigError(key, value, valid)
        elif value is not None and key not in READ[model_type] | METADATA and not key.startswith("_"):
            raise ConfigError(key, value, f"unknown key for model_type {model_type!r}")


def refuse_unknown_rope(rope: Mapping[str, Any], rope_type: str) -> None:
    """Raise ConfigError for an unknown RoPE type or parameter."""
    if not isinstance(rope_type, str) or rope_type not in ROPE_READ:
        raise ConfigError("rope_type", rope_type, f"one of {', '.join(ROPE_READ)}")
    for key, value in rope.items():
        if key == "partial_rotary_factor" and value in (1, None):
            continue
        if value is not None and key not in ROPE_READ[rope_type]:
            raise ConfigError(key, value, f"unknown key for rope_type {rope_type!r}")


def refuse_invalid_kept(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for an invalid value of a key that is not part of the model, but that we keep."""
    length = "max_position_embeddings"
    if config.get(length) is not None and integer(config, length) < 1:
        raise ConfigError(length, config[length], "positive")
    for key in TOKEN_IDS:
        ids = config.get(key)
        for index in ids if isinstance(ids, list) else [ids]:
            if index is not None and not (_is_integer(index) and index >= -1):  # -1: none
                raise ConfigError(key, ids, "the id of a token, or a list of them")


_REQUIRED = object()


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def integer(config: Mapping[str, Any], key: str, default: Any = _REQUIRED) -> int:
    """Return config[key] as an int of at most 31 bits; without a default the key is required."""
    value = config.get(key, default)
    if not _is_integer(value):
        raise _not_a(key, value, "an integer")
    return int(value)


def number(config: Mapping[str, Any], key: str, default: Any = _REQUIRED) -> float:
    """Return config[key] as a finite float; null means the default."""
    value = config.get(key, default)
    value = default if value is None else value
    fits = isinstance(value, float) and math.isfinite(value)
    if not fits and not _is_integer(value):
        raise _not_a(key, value, "a number")
    return float(value)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Return config[key] as a bool, also where it is written as text; false if it is missing or null."""
    value = _boolean(config.get(key))
    if not isinstance(value, bool | None):
        raise ConfigError(key, value, "true or false")
    return bool(value)


def _boolean(value: Any) -> Any:
    """Return the bool for "true" and "false", else the value."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _not_a(key: str, value: Any, kind: str) -> ConfigError:
    if value is _REQUIRED:
        return ConfigError(key, None, f"{kind} is required, but the key is missing")
    if isinstance(value, int) and not isinstance(value, bool):
        kind += f" from -{LARGEST:,} to {LARGEST:,}"
    if isinstance(value, float) and not math.isfinite(value):
        kind += " that is finite"
    return ConfigError(key, value, f"{kind} is required")
