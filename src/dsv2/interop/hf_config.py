"""Conversion between Hugging Face's `config.json` and our typed model config.

Reads model_type deepseek_v2, as written by transformers 5 (`rope_parameters`) and by the releases of 2024
(`rope_theta`, `rope_scaling`); for accounting also plain llama. Keys have the meaning that transformers 5.23 gives
them: `head_dim` and `qk_head_dim` follow from other widths. Anything our model cannot represent is refused by name,
also `norm_topk_prob`, which transformers ignores and the model's own code obeys.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv2.config import ConfigError
from dsv2.interop.hf_keys import (
    LLAMA_ROPES,
    THEIRS,
    flag,
    integer,
    number,
    refuse_invalid_kept,
    refuse_unknown,
)
from dsv2.interop.hf_rope import rope_of, rope_parameters, rope_to_hf
from dsv2.models.attention import GQA, MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from dsv2.storage.paths import as_path
from dsv2.storage.values import parse_object

TOPK_METHODS = ("greedy", "group_limited_greedy")


def read_config(path: str | Path) -> Transformer.Config:
    """Read a model config from `path`, a `config.json` or its directory."""
    path = as_path("path", path)
    return config_from_hf(read_json(path / "config.json" if path.is_dir() else path))


def read_json(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises ValueError if there is none or it cannot be read."""
    try:
        return parse_object(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def config_from_hf(config: Mapping[str, Any]) -> Transformer.Config:
    """Convert a parsed `config.json`. Raises ConfigError, a ValueError that names key and value.

    llama is for accounting only: its checkpoints pair RoPE channels differently, and its RoPE scaling is left out.
    """
    kind = config.get("model_type")
    if kind not in ("deepseek_v2", "llama"):
        raise ConfigError("model_type", kind, "'deepseek_v2' (or 'llama', for accounting)")
    refuse_unknown(config, kind)
    refuse_invalid_kept(config)
    try:
        return _deepseek(config) if kind == "deepseek_v2" else _llama(config)
    except ConfigError as error:
        raise ConfigError(THEIRS.get(error.key, error.key), error.value, error.valid) from None


def _deepseek(config: Mapping[str, Any]) -> Transformer.Config:
    num_heads, num_layers = integer(config, "num_attention_heads"), integer(config, "num_hidden_layers")
    if config.get("num_key_value_heads") not in (None, num_heads):
        value = config["num_key_value_heads"]
        raise ConfigError("num_key_value_heads", value, f"num_attention_heads={num_heads}, since MLA has no groups")
    num_dense = min(integer(config, "first_k_dense_replace", 0), num_layers)
    attention = MLA.Config(
        num_heads=num_heads,
        head_dim=integer(config, "qk_nope_head_dim"),
        rope_dim=integer(config, "qk_rope_head_dim"),
        v_dim=integer(config, "v_head_dim"),
        kv_latent_dim=integer(config, "kv_lora_rank"),
        q_latent_dim=None if config.get("q_lora_rank") is None else integer(config, "q_lora_rank"),
    )
    no_experts = config.get("n_routed_experts") is None
    if no_experts and ("n_routed_experts" in config or num_dense == num_layers):
        return _transformer(config, attention, SwiGLU.Config(width=integer(config, "intermediate_size")))
    return dataclasses.replace(
        _transformer(config, attention, _moe(config)),
        num_dense_layers=num_dense,
        dense=SwiGLU.Config(width=integer(config, "intermediate_size")) if num_dense else None,
    )


def _moe(config: Mapping[str, Any]) -> MoE.Config:
    method, num_experts = config.get("topk_method", "greedy"), integer(config, "n_routed_experts")
    if method not in TOPK_METHODS:
        raise ConfigError("topk_method", method, f"one of {', '.join(TOPK_METHODS)}")
    if method == "greedy":  # groups then limit nothing, but balance losses may still use them
        groups = integer(config, "n_group") if config.get("n_group") else 1
        num_devices, max_devices = groups if groups > 0 and num_experts % groups == 0 else 1, None
    else:
        num_devices, max_devices = integer(config, "n_group"), integer(config, "topk_group")
    top_k = integer(config, "num_experts_per_tok")
    if flag(config, "norm_topk_prob") and top_k > 1:
        raise ConfigError("norm_topk_prob", config["norm_topk_prob"], "false, since gates are not renormalised here")
    return MoE.Config(
        num_experts=num_experts,
        top_k=top_k,
        expert_dim=integer(config, "moe_intermediate_size"),
        num_shared=0 if config.get("n_shared_experts", 0) is None else integer(config, "n_shared_experts"),
        num_devices=num_devices,
        max_devices=max_devices,
        routed_scaling_factor=number(config, "routed_scaling_factor", 1.0),
    )


def _llama(config: Mapping[str, Any]) -> Transformer.Config:
    num_heads = integer(config, "num_attention_heads")
    given = config.get("head_dim") is not None
    attention = GQA.Config(
        num_heads=num_heads,
        num_kv_heads=num_heads if config.get("num_key_value_heads") is None else integer(config, "num_key_value_heads"),
        head_dim=integer(config, "head_dim") if given else integer(config, "hidden_size") // max(num_heads, 1),
    )
    rope = rope_parameters(config)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in LLAMA_ROPES:
        raise ConfigError("rope_type", kind, f"one of {', '.join(LLAMA_ROPES)}")
    unscaled = {"rope_parameters": {"rope_theta": rope.get("rope_theta")}, "rope_scaling": None}
    return _transformer({**config, **unscaled}, attention, SwiGLU.Config(width=integer(config, "intermediate_size")))


def _transformer(
    config: Mapping[str, Any], attention: GQA.Config | MLA.Config, ffn: MoE.Config | SwiGLU.Config
) -> Transformer.Config:
    return Transformer.Config(
        vocab_size=integer(config, "vocab_size"),
        dim=integer(config, "hidden_size"),
        num_layers=integer(config, "num_hidden_layers"),
        attention=attention,
        ffn=ffn,
        rope=rope_of(config),
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        tie_embeddings=flag(config, "tie_word_embeddings"),
        init_std=number(config, "initializer_range", 0.02),
    )


# Written by `config_to_hf` for models without a maximum length; DeepSeek-V2 was trained at 4K.
TRAINED_LENGTH = 4096


def config_to_hf(config: Transformer.Config) -> dict[str, Any]:
    """Convert to a `config.json` as transformers 5 writes it. Raises ValueError for what deepseek_v2 cannot represent.

    Token dropping, which acts only in training, is left out, as are the ids of special tokens, which depend on the
    tokenizer.
    """
    attention, ffn, dense = config.attention, config.ffn, config.dense
    if not isinstance(attention, MLA.Config):
        raise ConfigError("attention", attention, "MLA, the attention of deepseek_v2")
    if config.dim % attention.num_heads:
        raise ConfigError("dim", config.dim, f"a multiple of num_heads={attention.num_heads}, as transformers requires")
    if type(ffn) not in (MoE.Config, SwiGLU.Config):
        valid = "DeepSeekMoE or a dense SwiGLU, the FFNs of deepseek_v2, which has no other gates and no bias"
        raise ConfigError("ffn", ffn, valid)
    num_dense = config.num_dense_layers
    if isinstance(ffn, SwiGLU.Config):
        if num_dense and dense is not None and dense.width != ffn.width:
            raise ConfigError(
                "dense.width", dense.width, f"{ffn.width} as in the other layers, since deepseek_v2 has one width"
            )
        num_dense, dense = config.num_layers, ffn
    width = dense.width if dense is not None else 1  # unused without dense layers
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.rope.limit or TRAINED_LENGTH,
        "initializer_range": config.init_std,
        "rms_norm_eps": config.norm_eps,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": rope_to_hf(config.rope, attention.rope_dim),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "first_k_dense_replace": num_dense,
        "kv_lora_rank": attention.kv_latent_dim,
        "q_lora_rank": attention.q_latent_dim,
        "qk_nope_head_dim": attention.head_dim,
        "qk_rope_head_dim": attention.rope_dim,
        "v_head_dim": attention.v_dim,
        **(_moe_to_hf(ffn) if isinstance(ffn, MoE.Config) else {}),
    }


def _moe_to_hf(ffn: MoE.Config) -> dict[str, Any]:
    return {
        "n_routed_experts": ffn.num_experts,
        "num_experts_per_tok": ffn.top_k,
        "moe_intermediate_size": ffn.expert_dim,
        "n_shared_experts": ffn.num_shared,
        "n_group": ffn.num_devices,
        "topk_group": ffn.num_devices if ffn.max_devices is None else ffn.max_devices,
        "topk_method": "greedy" if ffn.max_devices is None else "group_limited_greedy",
        "routed_scaling_factor": ffn.routed_scaling_factor,
        "norm_topk_prob": False,
    }
