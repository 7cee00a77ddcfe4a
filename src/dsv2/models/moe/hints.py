"""What routing may go by beside the hidden state.

B batch, T tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.models.moe.router import Routing


class Hints(NamedTuple):
    """Facts of one batch for one layer; every type of layer reads the ones it knows."""

    tokens: Tensor | None = None  # (B, T) int64, what hash routing goes by
    exempt: Tensor | None = None  # (B,) bool: sequences that device-level dropping spares
    replay: Routing | None = None  # its experts are taken, with gates from the live affinities
    seed: int | None = None  # of this step and layer, for what is drawn in training; None: torch's global generator

    def uniform(self, *shape: int, device: torch.device) -> Tensor:
        """Float32 numbers from [0, 1); with a seed the same on every device and in every call."""
        if self.seed is None:
            return torch.rand(shape, device=device)
        return torch.rand(shape, generator=torch.Generator().manual_seed(self.seed)).to(device)


NONE = Hints()
