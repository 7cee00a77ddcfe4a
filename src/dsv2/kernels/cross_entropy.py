"""Cross-entropy, per token and, together with the output head, on average.

B sequences, T tokens, d model width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.choice import form

NOT_SCORED = -100  # a target without loss, the default ignore_index of F.cross_entropy


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log softmax(logits)[target], float32 (B, T), of logits (B, T, V) and int64 targets (B, T).

    0 where the target is `NOT_SCORED`. Any number of leading dims may replace B and T.
    """
    flat = logits.flatten(0, -2).float()
    return F.cross_entropy(flat, targets.flatten(), ignore_index=NOT_SCORED, reduction="none").view_as(targets)


def mean_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of `token_nats` over the scored targets, a float32 scalar; NaN if there are none."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=NOT_SCORED)


def head_nats(x: Tensor, w: Tensor, targets: Tensor) -> Tensor:
    """Return `mean_nats` of the logits x w^T, from x (..., d), w (V, d) and targets (...).

    Compiled for the CPU or in Triton, it never holds the logits of more than a chunk of tokens.
    """
    chosen, flat = form("head", x, w), (x.flatten(0, -2), w, targets.flatten(), NOT_SCORED)
    if chosen == "cpu":
        return torch.ops.dsv2.head_loss(*flat, True)[0]
    if chosen == "triton":
        differentiate = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
        return torch.ops.dsv2_triton.head_loss(*flat, differentiate)[0]
    return mean_nats(F.linear(x, w), targets)
