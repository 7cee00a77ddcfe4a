"""Weights as described by a component's config, for accounting without allocating them."""

import math
from typing import NamedTuple


class Weight(NamedTuple):
    """One parameter tensor: its shape, and the share used by one token (K / E for routed experts)."""

    name: str
    shape: tuple[int, ...]
    active_ratio: float = 1.0

    @property
    def total(self) -> int:
        return math.prod(self.shape)

    @property
    def active(self) -> int:
        return round(self.total * self.active_ratio)

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies activations in a matmul, at 2 FLOPs per active element and token; norms do not."""
        return len(self.shape) > 1
