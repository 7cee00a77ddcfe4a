"""What attention asks of a cache, and where the tokens of a ragged batch stand; caches live in `dsv2.inference.cache`.

B batch, T tokens, S keys.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """Per-token tensors of one layer, in the order of the attention config's `cache_shapes`."""

    @property
    def length(self) -> int:
        """Tokens that the longest row holds, S."""

    @property
    def lengths(self) -> Tensor:
        """Tokens that each row holds, (B,) int64."""

    @property
    def ragged(self) -> bool:
        """Whether rows may hold different numbers of tokens."""

    def append(self, *new: Tensor, ragged: "Ragged | None" = None) -> tuple[Tensor, ...]:
        """Add (B, T, ...) after what every row holds, or at the places that `ragged` gives; return all, (B, S, ...)."""


class Ragged(NamedTuple):
    """Rows of different lengths in one batch: where each token stands, and what it sees. The same for all layers."""

    positions: Tensor  # (B, T) int64; -1: padding, which nobody sees and whose own output means nothing
    visible: Tensor  # (B, T, S) bool: the keys that each query sees, at least one
    end: int  # S where keys are cached: one more than the highest position


def ragged_batch(positions: Tensor, cache: Cache | None) -> Ragged:
    """Work out what the queries at positions (B, T) see, of what `cache` holds and of one another.

    Raises ValueError unless the positions of each row count up by one, with a cache from the row's length on.
    """
    valid = positions >= 0
    starts = positions - valid.cumsum(1) + 1  # of a row, by each of its tokens: all alike
    first = starts.masked_fill(~valid, torch.iinfo(torch.int64).max).amin(1) if cache is None else cache.lengths
    wrong = (valid & (starts != first[:, None])).any(1) | (valid.any(1) & (first < 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        begin = "" if cache is None else f" from {int(cache.lengths[row])}, what its cache holds,"
        raise ValueError(f"positions[{row}]={positions[row].tolist()}: must count up{begin} by one, -1 for padding")
    seen_from = positions.clamp(min=0).unsqueeze(-1)  # padding sees what the first token sees, so that it is finite
    if cache is not None:
        end = max(int(positions.max()) + 1, cache.length, 1)
        return Ragged(positions, torch.arange(end, device=positions.device) <= seen_from, end)
    keys = positions.unsqueeze(1)
    own = torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)
    return Ragged(positions, ((keys >= 0) & (keys <= seen_from)) | own, positions.shape[1])
