"""Cross-entropy per token, without reduction.

B sequences, T tokens, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

NOT_SCORED = -100  # a target without loss, the default ignore_index of F.cross_entropy


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log softmax(logits)[target], float32 (B, T), of logits (B, T, V) and int64 targets (B, T).

    0 where the target is `NOT_SCORED`. Any number of leading dims may replace B and T.
    """
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=NOT_SCORED, reduction="none").view_as(targets)
