"""What attention asks of a cache; caches themselves live in `dsv2.inference.cache` and are passed in."""

from typing import Protocol

from torch import Tensor


class Cache(Protocol):
    """Per-token tensors of one layer, in the order of the attention config's `cache_shapes`."""

    @property
    def length(self) -> int:
        """Tokens held, S."""

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Add (B, T, ...) after what is held and return everything held, (B, S + T, ...)."""
