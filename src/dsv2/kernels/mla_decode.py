"""Softmax attention over MLA's cached latents, which serve all heads as keys and values.

B batch, T queries, S keys, H heads, C latent width, R width of the rotated key.
"""

import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.attention import causal_mask
from dsv2.kernels.choice import form
from dsv2.kernels.packed import Packed, packed_attention


def latent_attention(
    q_latent: Tensor,
    q_rope: Tensor,
    c_kv: Tensor | Packed,
    k_rope: Tensor | Packed,
    *,
    scale: float,
    visible: Tensor | None = None,
) -> Tensor:
    """Attend from q_latent (B, T, H, C) and q_rope (B, T, H, R) to c_kv (B, S, C) and k_rope (B, S, R): (B, T, H, C).

    `visible` (B, T, S) bool marks the keys that each query may attend to, the first of its row. Without it the queries
    are the last T of S tokens, and attention is causal.
    """
    if isinstance(c_kv, Packed):
        assert isinstance(k_rope, Packed), "latents and keys are packed together"
        return packed_attention([(q_latent, c_kv), (q_rope, k_rope)], c_kv, scale=scale, visible=visible)
    assert isinstance(k_rope, Tensor)
    length, total = q_latent.shape[1], c_kv.shape[1]
    inputs = (q_latent, q_rope, c_kv, k_rope)
    if length == 1 and not torch.is_grad_enabled() and form("mla_decode", *inputs) == "triton":
        lengths = q_latent.new_full((len(c_kv),), total, dtype=torch.int64) if visible is None else visible.sum((1, 2))
        return mla_decode(q_latent[:, 0], q_rope[:, 0], c_kv, k_rope, lengths, scale=scale).unsqueeze(1)
    scores = torch.einsum("bthc,bsc->bhts", q_latent, c_kv) + torch.einsum("bthr,bsr->bhts", q_rope, k_rope)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if visible is None and length > 1:
        visible = causal_mask(length, total - length, scores.device)
    if visible is not None:
        scores = scores.masked_fill(~visible.unsqueeze(-3), float("-inf"))  # broadcast over heads
    weights = (scores * scale).softmax(-1).to(c_kv.dtype)
    return torch.einsum("bhts,bsc->bthc", weights, c_kv)


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    c_kv: Tensor,
    k_rope: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    scales: Tensor | None = None,
) -> Tensor:
    """Attend from one query per row to the first `lengths` (B,) tokens of the row's cache: (B, H, C).

    With `scales` (B, S) float32, c_kv is `quantised`, and is read in no other form. The Triton form has no gradient.
    Specification: `reference.mla_decode`.
    """
    floating = (q_latent, q_rope, k_rope) if scales is not None else (q_latent, q_rope, k_rope, c_kv)
    if form("mla_decode", *floating) == "triton":
        return torch.ops.dsv2_triton.mla_decode(q_latent, q_rope, c_kv, k_rope, lengths, scales, scale)
    return reference.mla_decode(q_latent, q_rope, c_kv, k_rope, lengths, scale=scale, scales=scales)


def quantised(latents: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return latents (..., C) as int8 or float8_e4m3fn, and the float32 scales (...) by which rows are multiplied.

    A row's largest channel becomes the largest number of the type. Triton converts float8_e4m3fn from capability 8.9.
    """
    largest = torch.iinfo(dtype).max if dtype == torch.int8 else torch.finfo(dtype).max
    wide = latents.float()
    scales = (wide.abs().amax(-1) / largest).clamp(min=torch.finfo(torch.float32).tiny)  # a row of zeros stays one
    scaled = wide / scales[..., None]
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scales
