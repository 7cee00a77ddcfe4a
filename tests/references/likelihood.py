"""The likelihood of a text as a plain loop over its tokens."""

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def looped(model: nn.Module, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """Nats of a continuation, token by token, and whether each was the likeliest."""
    read, nats, greedy = list(context), 0.0, True
    for token in continuation:
        logits = model.eval()(torch.tensor([read])).logits[0, -1].double()
        nats += (logits[token] - logits.exp().sum().log()).item()
        greedy &= int(logits.argmax()) == token
        read.append(token)
    return nats, greedy
