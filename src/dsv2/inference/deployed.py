"""A trained model as it is deployed: its products in another precision, its keys and values in a quantised cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dsv2.config import ConfigBase, ConfigError
from dsv2.inference.cache import ModelCache, allocate_model
from dsv2.inference.precision import OPS
from dsv2.inference.quantised import allocate_quantised_model
from dsv2.kernels.fp8 import quantise_blocks
from dsv2.models.attention import AttentionConfig
from dsv2.models.attention.cache import Caches
from dsv2.models.attention.precision import BITS, KVPrecision
from dsv2.models.moe.router import Routing
from dsv2.models.ops import Ops
from dsv2.models.transformer import Transformer


class Deployed(Transformer):
    """The model with keys and values that are stored as `kv` says before attention sees them, also without caches.

    `allocate_caches` gives its caches.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        """How a trained model is deployed; `of` makes it."""

        precision: Literal["fp32", "bf16", "fp8"] = "fp32"  # of products of activations and weights
        kv: KVPrecision.Config | None = None  # None: keys and values are as attention computes them

        def require_fits(self, attention: AttentionConfig) -> None:
            """Raise ConfigError for a cache that is none of this attention's."""
            if self.kv is not None:
                try:
                    self.kv.forms(attention)
                except ConfigError as error:
                    raise ConfigError(f"deployment.kv.{error.key}", error.value, error.valid) from None

        def of(self, model: Transformer) -> Transformer:
            """Return the deployed model, which shares the weights that it does not round. `model` is not changed.

            In fp8 the weights are rounded here, for products of theirs that are not activations', as in absorbed
            attention. Raises ConfigError if the cache does not fit the attention.
            """
            if self == Deployed.Config():
                return model
            self.require_fits(model.config.attention)
            with torch.device("meta"):
                twin = Deployed(model.config, OPS[self.precision], self.kv)
            weights = model.state_dict()
            if self.precision == "fp8":
                weights = {name: _in_fp8(name, weight) for name, weight in weights.items()}
            twin.load_state_dict(weights, assign=True)
            return twin.train(model.training)

    def __init__(self, config: Transformer.Config, ops: Ops, kv: KVPrecision.Config | None) -> None:
        super().__init__(config, ops)
        self.kv = kv

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        caches: Caches | None = None,
        exempt: Tensor | None = None,
        routings: Sequence[Routing] | None = None,
        seed: int | None = None,
        router_logits: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """See `Transformer.hidden`; given caches are used as they are."""
        if caches is None and self.kv is not None:
            batch_size, length = tokens.shape
            caches = allocate_quantised_model(self, self.kv, batch_size=batch_size, max_length=length)
        return super().hidden(
            tokens,
            positions=positions,
            caches=caches,
            exempt=exempt,
            routings=routings,
            seed=seed,
            router_logits=router_logits,
        )


def allocate_caches(model: Transformer, *, batch_size: int, max_length: int) -> ModelCache:
    """Return empty caches for every layer: those of a deployed model as it says, others in the model's precision.

    Keys and values that are computed in bfloat16 or FP8 are bfloat16 already, of which a cache at 16 bits loses
    nothing.
    """
    kv = model.kv if isinstance(model, Deployed) else None
    if kv is None and model.ops.linear in (OPS["bf16"].linear, OPS["fp8"].linear):
        kv = KVPrecision.Config()
    if kv is None:
        return allocate_model(model, batch_size=batch_size, max_length=max_length)
    return allocate_quantised_model(model, kv, batch_size=batch_size, max_length=max_length)


def with_cache_of(kv_bits: int | None, rope_bits: int | None = None) -> Deployed.Config:
    """Return the deployment with a cache of `kv_bits` per element, None for the model's own precision.

    `rope_bits` are those of the channels of keys that RoPE rotates (default: the same). Raises ConfigError for bits
    that are not offered.
    """
    if kv_bits is None:
        if rope_bits is not None:
            raise ConfigError("rope_bits", rope_bits, "given beside kv_bits")
        return Deployed.Config()
    for name, bits in (("kv_bits", kv_bits), ("rope_bits", rope_bits)):
        if bits not in BITS and (name, bits) != ("rope_bits", None):
            raise ConfigError(name, bits, f"one of {', '.join(map(str, BITS))}")
    return Deployed.Config(kv=KVPrecision.Config(bits=kv_bits, rope_bits=rope_bits))


def _in_fp8(name: str, weight: Tensor) -> Tensor:
    """Return what FP8 stores of a weight, in float32; embedding, router and vectors are as they were."""
    if weight.dim() < 2 or name == "embedding" or name.endswith("router.w"):
        return weight
    if weight.dim() == 3:  # of experts, which multiply from the right
        return quantise_blocks(weight.mT).decode().mT.contiguous()
    return quantise_blocks(weight).decode()
