"""Softmax attention over full keys and values.

B batch, H heads, G key-value heads, T queries, S keys, Q width of queries and keys, V width of values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.choice import form
from dsv2.kernels.packed import Packed, packed_attention
from dsv2.kernels.rope import rotate

SHORT = 512  # tokens up to which the compiled attention is the faster one


def attention(
    q: Tensor,
    k: Tensor | Packed,
    v: Tensor | Packed,
    *,
    scale: float,
    start: int = 0,
    visible: Tensor | None = None,
) -> Tensor:
    """Attend from q (B, T, H, Q) to k (B, S, G, Q) and v (B, S, G, V): (B, T, H, V). Softmax in at least float32.

    `visible` (B, T, S) bool marks the keys that each query may attend to, at least one. Without it attention is causal:
    query t is at position start + t, key s at position s; S = start + T.
    """
    if isinstance(k, Packed):
        assert isinstance(v, Packed), "keys and values are packed together"
        return packed_attention([(q, k)], v, scale=scale, start=start, visible=visible)
    assert isinstance(v, Tensor)
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


def rotary_attention(
    q_nope: Tensor, q_rope: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor, rotations: Tensor, *, scale: float
) -> Tensor:
    """Attend causally with heads of two parts, of which the second is rotated here: (B, T, H, V).

    Queries are q_nope (B, T, H, D), D = 0 included, and q_rope (B, T, H, R); keys k_nope (B, T, G, D) and k_rope
    (B, T, G, R) or (B, T, 1, R), shared by all heads; v (B, T, G, V); rotations (T, R / 2) or (B, T, R / 2) complex.
    """
    parts = (q_nope, q_rope, k_nope, k_rope, v)
    chosen = form("attention", *parts)
    if chosen == "cpu" and v.shape[1] <= SHORT and rotations.dim() == 2:
        return torch.ops.dsv2.attention(*parts, torch.view_as_real(rotations), scale)[0]
    q_rope, k_rope = rotate(q_rope, rotations), rotate(k_rope, rotations)
    if chosen == "triton":
        return torch.ops.dsv2_triton.attention(q_nope, q_rope, k_nope, k_rope, v, scale)[0]
    q = torch.cat((q_nope, q_rope), dim=-1)
    k = torch.cat((k_nope, k_rope.expand(*k_nope.shape[:3], -1)), dim=-1)
    return attention(q, k, v, scale=scale)


def causal_mask(length: int, start: int, device: torch.device) -> Tensor:
    """Return (T, S) bool, True where the query at position start + t may attend to key s."""
    keys = torch.arange(start + length, device=device)
    return keys <= keys[start:, None]
