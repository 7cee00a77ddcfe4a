"""The choice of the next token from its logits.

B batch, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[int] | np.ndarray


def restricted(logits: Tensor, ids: Ids | None) -> Tensor:
    """Return logits (..., V) with -inf for all but `ids`, as for ids that have no token; None allows all."""
    if ids is None:
        return logits
    given = torch.as_tensor(np.asarray(ids), device=logits.device)
    allowed = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    allowed[given[given < len(allowed)]] = True
    return logits if bool(allowed.all()) else logits.masked_fill(~allowed, float("-inf"))


def choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Choose a token per row, (B,), from logits (B, V); the most likely one if the temperature is 0."""
    if temperature == 0:
        return logits.argmax(-1)
    below = logits.float() - logits.float().amax(-1, keepdim=True)  # at most 0, so that no quotient overflows
    scaled = (below.double() / temperature).masked_fill(below == float("-inf"), float("-inf"))
    return torch.multinomial(scaled.float().softmax(-1), 1, generator=generator)[:, 0]
