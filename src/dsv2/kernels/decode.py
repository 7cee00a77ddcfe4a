"""One new token of every row through an attention layer, as one compiled op each.

The specification is the layer's own computation in plain torch, with which it goes on where there is no op: on other
devices, in other types, with quantised caches, and where a gradient is wanted.

B rows, S cached tokens, d model width.
"""

from typing import TypeGuard

import torch
from torch import Tensor

from dsv2.kernels.choice import form


def has_step(held: tuple[object, ...], h: Tensor) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Return whether there is an op for the cached tensors (B, S, ...) of a layer and new tokens h (B, T, d)."""
    if h.shape[1] != 1 or torch.is_grad_enabled():
        return False
    tensors = [x for x in held if isinstance(x, Tensor)]
    return len(tensors) == len(held) and form("decode", h, *tensors) == "cpu"


def mla_step(
    h: Tensor,
    rotations: Tensor,
    weights: tuple[Tensor | None, ...],
    latents: Tensor,
    keys: Tensor,
    lengths: Tensor,
    *,
    num_heads: int,
    eps: float,
    scale: float,
) -> Tensor:
    """Return the output (B, 1, d) of MLA for h (B, 1, d), and write latent and key of the new tokens to the cache.

    Args:
        rotations: (R / 2) complex for all rows, or (B, 1, R / 2).
        weights: w_dq and q_norm, both None without query compression; w_uq, w_qr, w_dkv, kv_norm, w_kr, w_uk, w_uv,
            w_o.
        latents: (B, S, C), and keys (B, S, R); of each row, the token before the last of `lengths` (B,) is written.
    """
    return torch.ops.dsv2.mla_step(h, rotations, *weights, num_heads, eps, scale, latents, keys, lengths)


def gqa_step(
    h: Tensor,
    rotations: Tensor,
    weights: tuple[Tensor | None, ...],
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    eps: float,
    scale: float,
) -> Tensor:
    """Return the output (B, 1, d) of GQA for h (B, 1, d), and write key and value of the new tokens to the cache.

    Args:
        rotations: (R / 2) complex for all rows, or (B, 1, R / 2).
        weights: w_q, w_k, w_v, k_norm or None, w_o.
        keys: (B, S, G, D), and values likewise; of each row, token `lengths` (B,) - 1 is written.
    """
    return torch.ops.dsv2.gqa_step(h, rotations, *weights, eps, scale, keys, values, lengths)
