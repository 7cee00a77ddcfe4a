"""Preallocated per-layer caches of keys and values, or of MLA's latents.

B batch, S capacity in tokens.
"""

import torch
from torch import Tensor

from dsv2.models.attention import AttentionConfig
from dsv2.models.attention.cache import Ragged
from dsv2.models.transformer import Transformer


class LayerCache:
    """Cache of one layer with room for S tokens per row; the token at position p is stored at index p."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors, self.length = tensors, 0  # (B, S, ...) each; tokens in the longest row
        self._lengths: Tensor | None = None  # (B,), once rows differ

    @property
    def ragged(self) -> bool:
        """Whether rows may hold different numbers of tokens."""
        return self._lengths is not None

    @property
    def lengths(self) -> Tensor:
        """Tokens in each row, (B,) int64."""
        if self._lengths is not None:
            return self._lengths
        return torch.full(self.tensors[0].shape[:1], self.length, device=self.tensors[0].device)

    def append(self, *new: Tensor, ragged: Ragged | None = None) -> tuple[Tensor, ...]:
        """Append tensors (B, T, ...) and return the cached ones, (B, length, ...). Raises ValueError when full.

        With `ragged`, each token is written at the index of its position, and padding is skipped; indices beyond the
        end of a row are zero.
        """
        room, end = self.tensors[0].shape[1], self.length + new[0].shape[1] if ragged is None else ragged.end
        if end > room:
            raise ValueError(f"{end} tokens do not fit in a cache of {room}: allocate a larger max_length")
        for held, more in zip(self.tensors, new, strict=True):
            if ragged is None:
                held[:, self.length : end] = more
            else:
                held[:, self.length : end] = 0  # uninitialised memory may contain NaN
                rows, tokens = (ragged.positions >= 0).nonzero(as_tuple=True)
                held[rows, ragged.positions[rows, tokens]] = more[rows, tokens]
        if ragged is not None:
            self._lengths = torch.maximum(self.lengths, ragged.positions.amax(1) + 1)
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
    """Return an empty cache for one attention layer."""
    shapes = attention.cache_shapes()
    return LayerCache(
        tuple(torch.empty(batch_size, max_length, *shape, device=device, dtype=dtype) for shape in shapes)
    )


def allocate_model(model: Transformer, *, batch_size: int, max_length: int) -> list[LayerCache]:
    """Return one empty cache per layer, on the model's device and in its precision."""
    like = model.embedding
    return [
        allocate(
            model.config.attention, batch_size=batch_size, max_length=max_length, device=like.device, dtype=like.dtype
        )
        for _ in model.layers
    ]
