"""Softmax attention over full keys and values.

B batch, H heads, G key-value heads, T queries, S keys, Q width of queries and keys, V width of values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, start: int = 0, visible: Tensor | None = None
) -> Tensor:
    """Attention of q (B, T, H, Q) over k (B, S, G, Q), v (B, S, G, V): (B, T, H, V). Softmax in float32 or wider.

    `visible` (B, T, S) bool says which keys each query sees, at least one. Without it attention is causal: query t
    stands at position start + t and key s at position s; S = start + T.
    """
    length, v_dim = q.shape[1], v.shape[-1]
    if v_dim < q.shape[-1]:  # without equal widths SDPA takes its unfused path, 1.1 to 2.5 times slower than padded
        v = F.pad(v, (0, q.shape[-1] - v_dim))
    mask = None if visible is None else visible.unsqueeze(1)
    if visible is None and start > 0 and length > 1:
        mask = causal_mask(length, start, q.device)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and start == 0 and length > 1,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)[..., :v_dim]


def causal_mask(length: int, start: int, device: torch.device) -> Tensor:
    """(T, S) bool: True where query start + t may see key s."""
    keys = torch.arange(start + length, device=device)
    return keys <= keys[start:, None]
