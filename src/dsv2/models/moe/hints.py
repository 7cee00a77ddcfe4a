"""Inputs of routing other than the hidden state.

B batch, T tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.models.moe.router import Routing


class Hints(NamedTuple):
    """Inputs for one batch and layer; each type of layer uses those it needs."""

    tokens: Tensor | None = None  # (B, T) int64, for hash routing
    exempt: Tensor | None = None  # (B,) bool, sequences exempt from device-level dropping
    replay: Routing | None = None  # its experts are used, with gates from the live affinities
    seed: int | None = None  # of this step and layer, for random draws in training; None: torch's global generator
    logits: bool = False  # whether the block of the layer also returns the router's logits

    def uniform(self, *shape: int, device: torch.device) -> Tensor:
        """Draw float32 numbers from [0, 1); with a seed, the same on every device and in every call."""
        if self.seed is None:
            return torch.rand(shape, device=device)
        return torch.rand(shape, generator=torch.Generator().manual_seed(self.seed)).to(device)


NONE = Hints()
