"""Where the tokens of a batch are, what each may see, and what attention asks of caches.

Caches themselves are in `dsv2.inference.cache`.

B batch, T tokens, S keys.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dsv2.kernels.packed import Packed


class Cache(Protocol):
    """Per-token tensors of one layer, in the order of the attention config's `cache_shapes`; rows of equal room.

    A cache does not know which tokens are valid: that is the same for all layers and is in `Places`.
    """

    def write(self, *new: Tensor, places: "Places") -> None:
        """Store tensors (B, T, ...) of the tokens in `places`, padding excepted."""

    def read(self, end: int) -> tuple[Tensor, ...] | tuple[Packed, ...]:
        """Return the first `end` tokens of every row, (B, end, ...); those beyond a row's length are finite."""


class Caches(Protocol):
    """The caches of a model's layers, and how many tokens their rows hold."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each row, (B,) int64; on the host, so that nobody has to wait for a GPU to know them."""

    def __len__(self) -> int: ...

    def __getitem__(self, layer: int, /) -> Cache: ...

    def places(self, num_tokens: int, positions: Tensor | None = None, device: torch.device | None = None) -> "Places":
        """Return the places of the next T tokens of every row, or of those at `positions` (B, T), on a device."""

    def advance(self, places: "Places") -> None:
        """Count the tokens in `places`, which every layer has stored by now."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Places of a batch's tokens (B, T) and the keys that they see; made once per forward pass, for all layers.

    A batch is even if no row is padded and all start at the same position: then attention is causal without a mask.
    Otherwise `visible` is the mask, and the outputs of padding are without meaning. Without caches, a row may hold
    several documents, which see nothing of one another.
    """

    positions: Tensor  # (T,) int64 if the batch is even, else (B, T) with -1 for padding
    start: int | None  # the position of every row's first token if the batch is even
    end: int  # S, keys: with caches, the tokens of the longest row once the batch is stored
    first: bool = True  # whether there is nothing to see but the batch itself
    max_length: int = 0  # room of a row of the caches, in tokens
    after: np.ndarray | None = None  # (B,) int64, tokens of each row once the batch is stored; None without caches
    on_host: np.ndarray | None = None  # the positions (B, T) unless the batch is even; None without caches
    padded: bool = False  # whether some positions are -1
    documents: Tensor | None = None  # (B, T) int64, number of each token's document in its row; None: all are of one

    @property
    def last(self) -> int:
        """The highest position of a token; without caches, the device has to be waited for."""
        return int(self.positions.max()) if self.after is None else int(self.after.max()) - 1

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each row once the batch is stored, (B,) int64 on the device of the positions."""
        assert self.after is not None, "only rows of caches have lengths"
        return torch.from_numpy(self.after).to(self.positions.device, non_blocking=True)

    @cached_property
    def visible(self) -> Tensor | None:
        """The keys that each query may see, at least one, (B, T, S) bool; None for causal attention."""
        if self.start is not None:
            return None
        queries = self.positions.clamp(min=0).unsqueeze(-1)  # padding attends like the first token, so it is finite
        if self.after is not None:
            return torch.arange(self.end, device=queries.device) <= queries
        keys = self.positions.unsqueeze(1)
        own = torch.eye(self.end, dtype=torch.bool, device=keys.device)
        seen = (keys >= 0) & (keys <= queries)
        if self.documents is not None:
            seen &= self.documents.unsqueeze(1) == self.documents.unsqueeze(-1)
        return seen | own

    @cached_property
    def slots(self) -> tuple[Tensor | None, Tensor]:
        """Where an uneven batch is stored: indices into its (B T,) tokens, None for all, and into (B max_length,)."""
        assert self.on_host is not None, "an even batch is stored from `start` to `end`"
        device = self.positions.device
        slots = (self.on_host + np.arange(len(self.on_host))[:, None] * self.max_length).ravel()
        if not self.padded:
            return None, torch.from_numpy(slots).to(device, non_blocking=True)
        tokens = np.flatnonzero(self.on_host >= 0)
        chosen = torch.from_numpy(np.stack((tokens, slots[tokens]))).to(device, non_blocking=True)
        return chosen[0], chosen[1]


def own_places(positions: Tensor) -> Places:
    """Return the places of tokens at positions (B, T), -1 for padding, that see only their own document in their row.

    Position 0 begins a document. Raises ValueError unless positions count up by one within each.
    """
    on_host = positions.numpy(force=True)
    rows, columns = np.nonzero(on_host >= 0)
    given = on_host[rows, columns]
    same_row, first = rows[1:] == rows[:-1], given[1:] == 0
    wrong = same_row & ~first & (given[1:] != given[:-1] + 1)
    if wrong.any():
        row = int(rows[1:][wrong.argmax()])
        valid = "must count up by one, -1 for padding; 0 begins another document"
        raise ValueError(f"positions[{row}]={on_host[row].tolist()}: {valid}")
    documents = (positions == 0).cumsum(1) if (same_row & first).any() else None
    return Places(positions=positions, start=None, end=positions.shape[1], padded=True, documents=documents)


def cached_places(
    lengths: np.ndarray,
    max_length: int,
    num_tokens: int,
    *,
    positions: Tensor | None = None,
    device: torch.device | None = None,
) -> Places:
    """Return the places of T more tokens for rows of `lengths` (B,), or of tokens at `positions` (B, T).

    There is nothing to wait for unless `positions` are on a GPU. Raises ValueError for a row without room for its
    tokens, and unless positions, but for -1 as padding, count up by one from the length of their row.
    """
    if positions is None:
        after, on_host = lengths + num_tokens, None
    else:
        on_host = positions.numpy(force=True).astype(np.int64, copy=False)
        after = np.maximum(lengths, _last(on_host, lengths) + 1)
    longest, end = int(lengths.max()), int(after.max())
    if end > max_length:
        raise ValueError(f"{end} tokens do not fit in a cache of {max_length}: allocate a larger max_length")
    common: dict[str, Any] = {"end": max(end, 1), "first": longest == 0, "max_length": max_length, "after": after}
    if int(lengths.min()) == longest and int(after.min()) == longest + num_tokens:
        return Places(positions=torch.arange(longest, end, device=device), start=longest, **common)
    padded = on_host is not None and bool(on_host.min() < 0)
    if on_host is None:
        on_host = lengths[:, None] + np.arange(num_tokens)
    where = torch.from_numpy(on_host).to(device, non_blocking=True)
    return Places(positions=where, start=None, on_host=on_host, padded=padded, **common)


def _last(positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the last position of each row of (B, T), (B,), which is -1 if it is nothing but padding.

    Raises ValueError unless the positions of each row count up by one from its length.
    """
    valid = positions >= 0
    starts = positions - valid.cumsum(1) + 1  # the row's first position, as implied by each token
    given = valid.any(1)
    first = np.where(given, starts[np.arange(len(valid)), valid.argmax(1)], -1)
    wrong = (valid & (starts != first[:, None])).any(1) | (given & (first != lengths))
    if wrong.any():
        row = int(wrong.argmax())
        begin = f"from {lengths[row]}, the length of its cache,"
        raise ValueError(f"positions[{row}]={positions[row].tolist()}: must count up {begin} by one, -1 for padding")
    return positions.max(1)
