"""What a component's config says of its weights, for accounting without allocating them."""

import math
from typing import NamedTuple


class Weight(NamedTuple):
    """One parameter tensor: its shape, and the share of it that one token uses (K / E for routed experts)."""

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
        """True where it is multiplied with activations: 2 FLOPs an active element and token. Norms are vectors."""
        return len(self.shape) > 1
