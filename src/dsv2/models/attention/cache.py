"""The cache interface of attention, and positions of ragged batches; caches are in `dsv2.inference.cache`.

B batch, T tokens, S keys.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """Per-token tensors of one layer, in the order of the attention config's `cache_shapes`."""

    @property
    def length(self) -> int:
        """Tokens in the longest row, S."""

    @property
    def lengths(self) -> Tensor:
        """Tokens in each row, (B,) int64."""

    @property
    def ragged(self) -> bool:
        """Whether rows may hold different numbers of tokens."""

    def append(self, *new: Tensor, ragged: "Ragged | None" = None) -> tuple[Tensor, ...]:
        """Append (B, T, ...) to every row, or write at the positions in `ragged`; return all tokens, (B, S, ...)."""


class Ragged(NamedTuple):
    """Positions and attention mask of a batch with rows of different lengths; the same for all layers."""

    positions: Tensor  # (B, T) int64; -1: padding, which is masked and whose output is meaningless
    visible: Tensor  # (B, T, S) bool: the keys visible to each query, at least one
    end: int  # S if keys are cached: one more than the highest position


def ragged_batch(positions: Tensor, cache: Cache | None) -> Ragged:
    """Compute which keys, of `cache` and of the batch itself, are visible to queries at positions (B, T).

    Raises ValueError unless the positions of each row are consecutive and, with a cache, start at the row's length.
    """
    valid = positions >= 0
    starts = positions - valid.cumsum(1) + 1  # the row's first position, as implied by each token
    first = starts.masked_fill(~valid, torch.iinfo(torch.int64).max).amin(1) if cache is None else cache.lengths
    wrong = (valid & (starts != first[:, None])).any(1) | (valid.any(1) & (first < 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        begin = "" if cache is None else f" from {int(cache.lengths[row])}, the length of its cache,"
        raise ValueError(f"positions[{row}]={positions[row].tolist()}: must count up{begin} by one, -1 for padding")
    queries = positions.clamp(min=0).unsqueeze(-1)  # padding attends like the first token, so that it is finite
    if cache is not None:
        end = max(int(positions.max()) + 1, cache.length, 1)
        return Ragged(positions, torch.arange(end, device=positions.device) <= queries, end)
    keys = positions.unsqueeze(1)
    own = torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)
    return Ragged(positions, ((keys >= 0) & (keys <= queries)) | own, positions.shape[1])
