"""Softmax attention over full keys and values.

B batch, H heads, G key-value heads, T queries, S keys, Q width of queries and keys, V width of values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, start: int = 0, visible: Tensor | None = None
) -> Tensor:
    """Attend from q (B, T, H, Q) to k (B, S, G, Q) and v (B, S, G, V): (B, T, H, V). Softmax in at least float32.

    `visible` (B, T, S) bool marks the keys that each query may attend to, at least one. Without it attention is causal:
    query t is at position start + t, key s at position s; S = start + T.
    """
    length, v_dim = q.shape[1], v.shape[-1]
    if v_dim < q.shape[-1]:  # with unequal widths SDPA is unfused, 1.1 to 2.5 times slower than with padding
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
    """Return (T, S) bool, True where the query at position start + t may attend to key s."""
    keys = torch.arange(start + length, device=device)
    return keys <= keys[start:, None]
