"""Initial weights, paired between models: a weight depends on the seed and on its own name and shape, on nothing else.

Two arms of a study that share a parameter start it from the same numbers, whatever the rest of the model looks like.
"""

import hashlib

import torch
from torch import nn


def initialise(model: nn.Module, *, std: float, embedding_std: float, seed: int) -> None:
    """Matrices normal(0, std), the embedding normal(0, embedding_std), norm weights 1.

    Drawn on the CPU, so that every device starts alike.
    """
    for name, weight in model.named_parameters():
        if weight.is_meta:
            continue
        if weight.dim() == 1:
            nn.init.ones_(weight)
            continue
        named = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(named)
        deviation = embedding_std if name == "embedding" else std
        with torch.no_grad():
            weight.copy_(torch.empty(weight.shape).normal_(0.0, deviation, generator=generator))
