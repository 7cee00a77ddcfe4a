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
from dsv2.models.attention.precision import KVPrecision
from dsv2.models.moe.router import Routing
from dsv2.models.ops import Ops
from dsv2.models.transformer import Transformer


class Deployed(Transformer):
    """The model with keys and values that are stored in `kv` before attention sees them, also without a cache."""

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

        def caches(self, model: Transformer, *, batch_size: int, max_length: int) -> ModelCache:
            """Return empty caches for a deployed model: as `kv` says, else in the precision of its keys and values."""
            kv = KVPrecision.Config() if self.kv is None and self.precision != "fp32" else self.kv
            if kv is None:
                return allocate_model(model, batch_size=batch_size, max_length=max_length)
            return allocate_quantised_model(model, kv, batch_size=batch_size, max_length=max_length)

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
    ) -> tuple[Tensor, tuple[Routing, ...]]:
        """See `Transformer.hidden`; given caches are used as they are."""
        if caches is None and self.kv is not None:
            batch_size, length = tokens.shape
            caches = allocate_quantised_model(self, self.kv, batch_size=batch_size, max_length=length)
        return super().hidden(tokens, positions=positions, caches=caches, exempt=exempt, routings=routings, seed=seed)


def _in_fp8(name: str, weight: Tensor) -> Tensor:
    """Return what FP8 stores of a weight, in float32; embedding, router and vectors are as they were."""
    if weight.dim() < 2 or name == "embedding" or name.endswith("router.w"):
        return weight
    if weight.dim() == 3:  # of experts, which multiply from the right
        return quantise_blocks(weight.mT).decode().mT.contiguous()
    return quantise_blocks(weight).decode()
