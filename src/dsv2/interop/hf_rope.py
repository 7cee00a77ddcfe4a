"""RoPE in a Hugging Face `config.json`, in both directions.

YaRN's factor on cos and sin is 0.1 ln(factor) + 1 there unless both mscale keys are set. There is no NTK-aware scaling
with a fixed factor: it is written as the base that it amounts to.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from dsv2.config import ConfigError
from dsv2.interop.hf_keys import integer, number, refuse_unknown_rope
from dsv2.models.rope import NTK, Interpolation, Rope, Yarn


def rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the RoPE parameters of a file of 2024 or of 2026; `rope_theta` may be beside them."""
    scaling, parameters = config.get("rope_scaling"), config.get("rope_parameters")
    if scaling and parameters and scaling != parameters:
        raise ConfigError("rope_scaling", scaling, f"absent, since rope_parameters={parameters!r} is given")
    rope = scaling or parameters or {}
    if not isinstance(rope, Mapping):
        raise ConfigError("rope_scaling" if scaling else "rope_parameters", rope, "an object")
    return rope


def rope_of(config: Mapping[str, Any]) -> Rope.Config:
    rope = rope_parameters(config)
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse_unknown_rope(rope, kind)
    base = number(config if rope.get("rope_theta") is None else rope, "rope_theta", 10000.0)
    if kind == "linear":
        return Rope.Config(base=base, extension=_interpolation(rope, config))
    return Rope.Config(base=base, yarn=_yarn(rope, config) if kind == "yarn" else None)


def _interpolation(rope: Mapping[str, Any], config: Mapping[str, Any]) -> Interpolation.Config:
    """Return position interpolation up to `max_position_embeddings`."""
    factor = Interpolation.Config(factor=number(rope, "factor")).factor
    length = integer(config, "max_position_embeddings")
    return Interpolation.Config(factor=factor, original_length=max(1, math.ceil(length / factor)))


def _yarn(rope: Mapping[str, Any], config: Mapping[str, Any]) -> Yarn.Config:
    """Return YaRN with the factors that transformers applies to cos and sin and to the softmax.

    Ours are m(mscale) / m(mscale_all_dim) and m(mscale_all_dim)^2, with m(x) = 0.1 x ln(factor) + 1. For the first,
    transformers takes `attention_factor` if given, else m(1) unless both keys are nonzero; mscale is set to match.
    """
    if rope.get("truncate") not in (True, None):
        raise ConfigError("truncate", rope["truncate"], "true, since the range of pairs is rounded here")
    length = "original_max_position_embeddings"
    yarn = Yarn.Config(
        factor=number(rope, "factor"),
        original_length=integer(config, "max_position_embeddings")
        if rope.get(length) is None
        else integer(rope, length),
        beta_fast=number(rope, "beta_fast", 32.0) or 32.0,
        beta_slow=number(rope, "beta_slow", 1.0) or 1.0,
        mscale=number(rope, "mscale", 0.0),
        mscale_all_dim=number(rope, "mscale_all_dim", 0.0),
    )
    on_softmax = yarn.length_scale(yarn.mscale_all_dim)
    if rope.get("attention_factor") is not None:
        wanted = number(rope, "attention_factor")
        if wanted <= 0:
            raise ConfigError("attention_factor", wanted, "positive")
    elif yarn.mscale and yarn.mscale_all_dim:
        wanted = yarn.length_scale(yarn.mscale) / on_softmax
    else:
        wanted = yarn.length_scale(1.0)
    for mscale in (yarn.mscale, 1.0):
        if yarn.length_scale(mscale) / on_softmax == wanted:
            return dataclasses.replace(yarn, mscale=mscale)
    if yarn.factor == 1:
        raise ConfigError("attention_factor", wanted, "1 if factor is 1")
    return dataclasses.replace(yarn, mscale=(wanted * on_softmax - 1) / (0.1 * math.log(yarn.factor)))


def rope_to_hf(rope: Rope.Config, dim: int) -> dict[str, Any]:
    """Return the parameters of a RoPE of width `dim`."""
    yarn, extension = rope.yarn, rope.extension
    if isinstance(extension, Interpolation.Config):
        return {"rope_type": "linear", "rope_theta": rope.base, "factor": extension.factor}
    if yarn is None:
        base = extension.new_base(rope.base, dim) if isinstance(extension, NTK.Config) else rope.base
        return {"rope_type": "default", "rope_theta": base}
    parameters = {
        "rope_type": "yarn",
        "rope_theta": rope.base,
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_length,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "mscale": yarn.mscale,
        "mscale_all_dim": yarn.mscale_all_dim,
    }
    if not (yarn.mscale and yarn.mscale_all_dim):  # transformers would ignore them
        parameters["attention_factor"] = yarn.rotation_factor
    return parameters
