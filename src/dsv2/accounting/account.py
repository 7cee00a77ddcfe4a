"""Parameters, FLOPs and cache sizes, computed from a model's config without allocating weights.

FLOPs are forward and backward: 3 x (2 x the matrix elements that one token uses, including the output head but not the
input embedding, + attention scores and values over the full square of the context, not its causal half).
"""

import math
from dataclasses import dataclass
from typing import Any

from dsv2.models.attention.precision import KVPrecision
from dsv2.models.transformer import Transformer
from dsv2.models.weights import Weight

MOST = 10**12  # tokens or sequences; beyond it, a number is a mistake


@dataclass(frozen=True)
class Item:
    """One row of the account: the weights of a part, summed over layers."""

    part: str
    layers: int
    total_params: int
    active_params: int  # used by one token
    flops_per_token: int  # forward and backward


@dataclass(frozen=True)
class Account:
    """Parameters, FLOPs and cache of a model, by part and in total."""

    items: tuple[Item, ...]
    context: int  # tokens, for the attention scores
    kv_elements_per_token: int  # over all layers
    kv_bits: float  # per element, on average
    kv_bytes_per_token: float

    @property
    def total_params(self) -> int:
        return sum(item.total_params for item in self.items)

    @property
    def active_params(self) -> int:
        """Parameters used by one token, including the input embedding."""
        return sum(item.active_params for item in self.items)

    @property
    def active_params_without_embedding(self) -> int:
        return sum(item.active_params for item in self.items if item.part != "embedding")

    @property
    def flops_per_token(self) -> int:
        return sum(item.flops_per_token for item in self.items)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values, totals first."""
        sums = (
            "total_params",
            "active_params",
            "active_params_without_embedding",
            "flops_per_token",
            "kv_elements_per_token",
            "kv_bytes_per_token",
            "context",
            "kv_bits",
        )
        return {name: getattr(self, name) for name in sums} | {"items": [vars(item) for item in self.items]}


def account(
    model: Transformer.Config, *, context: int = 4096, kv_bits: float = 16, kv: KVPrecision.Config | None = None
) -> Account:
    """Account for `model` at a `context` in tokens, with `kv_bits` bits per cached element, or with a cache as `kv`.

    The latter counts all that the cache holds, scales and offsets included.
    """
    if not isinstance(model, Transformer.Config):
        raise TypeError(f"model={model!r}: must be the config of a model, as in load([...]).model")
    if not 1 <= context <= MOST:
        raise ValueError(f"context={context}: must be 1 to {MOST:,} tokens")
    if not 0 < kv_bits < math.inf:
        raise ValueError(f"kv_bits={kv_bits}: must be positive and finite")
    embedding = model.vocab_size * model.dim
    items = [Item("embedding", 1, embedding, embedding, 0)]
    scores = 3 * model.num_layers * model.attention.score_flops(context)
    items.append(_item("attention", model.num_layers, model.attention.weights(model.dim), scores))
    for name, first, last in (("ffn, dense layers", 0, model.num_dense_layers), ("ffn", model.num_dense_layers, None)):
        ffns = model.ffns()[first:last]
        by_part: dict[str, list[Weight]] = {}
        for weight in ffns[0].weights(model.dim) if ffns else []:
            part = weight.name.split(".")[0] if "." in weight.name else ""
            by_part.setdefault(part, []).append(weight)
        items += [_item(f"{name}: {part}" if part else name, len(ffns), of) for part, of in by_part.items()]
    items.append(_item("norms", 1, [Weight("norms", (model.dim * (2 * model.num_layers + 1),))]))
    head = _item("head", 1, [Weight("head", (model.vocab_size, model.dim))])
    if model.tie_embeddings:
        head = Item("head (tied)", 1, 0, 0, head.flops_per_token)
    items.append(head)
    kv_elements = model.num_layers * sum(map(math.prod, model.attention.cache_shapes()))
    kv_bytes = kv_elements * kv_bits / 8
    if kv is not None:
        kv_bytes = model.num_layers * kv.bytes_per_token(model.attention)
        kv_bits = 8 * kv_bytes / kv_elements
    return Account(tuple(items), context, kv_elements, kv_bits, kv_bytes)


def _item(part: str, layers: int, weights: list[Weight], more_flops: int = 0) -> Item:
    matmul = sum(weight.active for weight in weights if weight.is_matrix)
    return Item(
        part,
        layers,
        layers * sum(weight.total for weight in weights),
        layers * sum(weight.active for weight in weights),
        layers * 6 * matmul + more_flops,
    )
