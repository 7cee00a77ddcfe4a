"""Preallocated per-layer caches of keys and values, or of MLA's latents.

B batch, S room in tokens.
"""

import torch
from torch import Tensor

from dsv2.models.attention import AttentionConfig
from dsv2.models.transformer import Transformer


class LayerCache:
    """Room for S tokens of one layer; `append` writes in place."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors, self.length = tensors, 0  # (B, S, ...) each, tokens held

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Write (B, T, ...) behind what is held; returns all that is held, (B, length, ...). ValueError when full."""
        room, end = self.tensors[0].shape[1], self.length + new[0].shape[1]
        if end > room:
            raise ValueError(f"{end} tokens do not fit a cache of {room}: allocate a larger max_length")
        for held, more in zip(self.tensors, new, strict=True):
            held[:, self.length : end] = more
        self.length = end
        return tuple(held[:, :end] for held in self.tensors)


def allocate(
    attention: AttentionConfig,
    *,
    batch_size: int,
    max_length: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LayerCache:
    """An empty cache for one attention layer."""
    shapes = attention.cache_shapes()
    return LayerCache(
        tuple(torch.empty(batch_size, max_length, *shape, device=device, dtype=dtype) for shape in shapes)
    )


def allocate_model(model: Transformer, *, batch_size: int, max_length: int) -> list[LayerCache]:
    """One empty cache a layer, on the model's device and in its precision."""
    like = model.embedding
    return [
        allocate(
            model.config.attention, batch_size=batch_size, max_length=max_length, device=like.device, dtype=like.dtype
        )
        for _ in model.layers
    ]
