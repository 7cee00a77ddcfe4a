"""Preallocated caches of keys and values, or of MLA's latents: for one layer, and for a model.

B rows, S room of a row in tokens.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from dsv2.models.attention import AttentionConfig
from dsv2.models.attention.cache import Cache, Places, cached_places
from dsv2.models.transformer import Transformer


class Storage(Cache, Protocol):
    """What a layer's cache must be able to do in `ModelCache`, whatever form its tokens are stored in.

    It holds B x S tokens and no state: not which of them are valid, which `ModelCache` knows. All tokens are finite at
    all times, since masked keys are multiplied by weights of zero.
    """

    @property
    def batch_size(self) -> int:
        """B."""

    @property
    def max_length(self) -> int:
        """S."""

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for these rows, with scales and whatever else they need."""

    def rows(self, first: int, end: int) -> Self:
        """Return rows `first` to `end` - 1 as a cache that shares this one's memory."""

    def copy(self, source: int, target: int, first: int, end: int) -> None:
        """Copy tokens `first` to `end` - 1 of one row to the same places of another, bit by bit."""

    def swap(self, row: int, other: int, end: int) -> None:
        """Exchange the first `end` tokens of two rows, bit by bit."""

    def clear(self, row: int, first: int, end: int) -> None:
        """Make tokens `first` to `end` - 1 of a row zero, or anything else that is finite and always the same."""


class LayerCache:
    """One layer's tokens as they are, in tensors (B, S, ...); the token at position p is stored at index p."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors
        self.flat = tuple(tensor.flatten(0, 1) for tensor in tensors)  # (B S, ...), the same memory

    @property
    def batch_size(self) -> int:
        return self.tensors[0].shape[0]

    @property
    def max_length(self) -> int:
        return self.tensors[0].shape[1]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def write(self, *new: Tensor, places: Places) -> None:
        """Store tensors (B, T, ...) of the tokens in `places`, padding excepted."""
        for held, flat, more in zip(self.tensors, self.flat, new, strict=True):
            if places.start is not None:
                held[:, places.start : places.end] = more
            else:
                tokens, slots = places.slots
                stored = more.flatten(0, 1) if tokens is None else more.flatten(0, 1)[tokens]
                flat.index_copy_(0, slots, stored.to(flat.dtype))

    def read(self, end: int) -> tuple[Tensor, ...]:
        """Return the first `end` tokens of every row, (B, end, ...), without copying them."""
        return tuple(held[:, :end] for held in self.tensors)

    def rows(self, first: int, end: int) -> "LayerCache":
        return LayerCache(tuple(tensor[first:end] for tensor in self.tensors))

    def copy(self, source: int, target: int, first: int, end: int) -> None:
        for tensor in self.tensors:
            tensor[target, first:end] = tensor[source, first:end]

    def swap(self, row: int, other: int, end: int) -> None:
        for tensor in self.tensors:
            tensor[[row, other], :end] = tensor[[other, row], :end]  # the right side is a copy

    def clear(self, row: int, first: int, end: int) -> None:
        for tensor in self.tensors:
            tensor[row, first:end] = 0


class ModelCache:
    """The caches of a model's layers, and how many tokens each of their B rows holds.

    Rows are independent: a row is extended by passes of the model over it, shortened by `truncate`, and begun with the
    tokens of another by `copy`; `swap` exchanges two. `rows` is a cache of some of them, for a pass over these alone.
    What a row holds beyond its length is never seen.
    """

    def __init__(self, layers: Sequence[Storage], *, lengths: np.ndarray | None = None) -> None:
        """Take one cache per layer, all of the same room; by default, they are empty."""
        self.layers, self.max_length = layers, layers[0].max_length
        self.lengths = np.zeros(layers[0].batch_size, dtype=np.int64) if lengths is None else lengths  # (B,)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> Storage:
        return self.layers[layer]

    @property
    def num_bytes(self) -> int:
        """Bytes allocated for these rows."""
        return sum(layer.num_bytes for layer in self.layers)

    def rows(self, first: int, end: int) -> "ModelCache":
        """Return rows `first` to `end` - 1 as a cache that shares memory and lengths with this one."""
        return ModelCache([layer.rows(first, end) for layer in self.layers], lengths=self.lengths[first:end])

    def places(self, num_tokens: int, positions: Tensor | None = None, device: torch.device | None = None) -> Places:
        """Return the places of the next T tokens of every row, or of those at `positions` (B, T), on a device.

        Raises ValueError for tokens that do not fit, and for positions that do not go on from a row's length.
        """
        return cached_places(self.lengths, self.max_length, num_tokens, positions=positions, device=device)

    def advance(self, places: Places) -> None:
        """Count the tokens in `places`, which every layer has stored by now."""
        assert places.after is not None
        self.lengths[:] = places.after

    def truncate(self, row: int, length: int = 0) -> None:
        """Forget the tokens of a row from position `length` on."""
        for layer in self.layers:
            layer.clear(row, length, int(self.lengths[row]))  # a token that is not finite would spoil the next ones
        self.lengths[row] = min(length, self.lengths[row])

    def copy(self, source: int, target: int, length: int) -> None:
        """Make a row hold the first `length` tokens of another, which must have as many, and nothing else."""
        assert length <= self.lengths[source], f"row {source} has {self.lengths[source]} tokens, not {length}"
        if source != target:
            for layer in self.layers:
                layer.copy(source, target, 0, length)
            self.lengths[target] = max(length, self.lengths[target])
        self.truncate(target, length)

    def swap(self, row: int, other: int) -> None:
        """Exchange the tokens of two rows."""
        end = int(max(self.lengths[row], self.lengths[other]))
        for layer in self.layers:
            layer.swap(row, other, end)
        self.lengths[[row, other]] = self.lengths[[other, row]]


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
        tuple(torch.zeros(batch_size, max_length, *shape, device=device, dtype=dtype) for shape in shapes)
    )


def allocate_model(model: Transformer, *, batch_size: int, max_length: int) -> ModelCache:
    """Return empty caches for every layer, on the model's device and in its precision."""
    like = model.embedding
    return ModelCache(
        [
            allocate(
                model.config.attention,
                batch_size=batch_size,
                max_length=max_length,
                device=like.device,
                dtype=like.dtype,
            )
            for _ in model.layers
        ]
    )
