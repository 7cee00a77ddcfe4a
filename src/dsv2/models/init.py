"""Initial weights, paired between models: a weight depends only on the seed and on its own name and shape.

Two arms of a study that share a parameter start it from the same values, whatever the rest of the model.
"""

import hashlib

import torch
from torch import nn


def initialise(model: nn.Module, *, std: float, embedding_std: float, seed: int) -> None:
    """Initialise matrices from normal(0, std), the embedding from normal(0, embedding_std), norm weights with 1.

    Values are drawn on the CPU, so that they are the same on every device.
    """
    for name, weight in model.named_parameters():
        if weight.is_meta:
            continue
        if weight.dim() == 1:
            nn.init.ones_(weight)
            continue
        own_seed = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(own_seed)
        own_std = embedding_std if name == "embedding" else std
        with torch.no_grad():
            weight.copy_(torch.empty(weight.shape).normal_(0.0, own_std, generator=generator))
