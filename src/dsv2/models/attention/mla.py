"""Multi-head latent attention (section 2.1, appendix C).

B batch, T tokens, S keys, d model width, H heads, D head width without RoPE (d_h), R decoupled RoPE width
(d_h^R), V value width, C key-value latent width (d_c), Q query latent width (d_c').
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsv2.config import ConfigBase
from dsv2.kernels.attention import attention, rotary_attention
from dsv2.kernels.decode import has_step, mla_step
from dsv2.kernels.mla_decode import latent_attention
from dsv2.kernels.packed import Packed
from dsv2.models.attention.cache import Cache, Places
from dsv2.models.norm import RMSNorm
from dsv2.models.ops import PLAIN, Ops
from dsv2.models.rope import Rope, rotate
from dsv2.models.weights import Weight

LATENT_NORM_EPS = 1e-6  # independent of the model's norm_eps, as in the released checkpoints


class MLA(nn.Module):
    """Attention with keys and values expanded from one latent per token; only it and one RoPE key are cached.

    There are two computations of the same function: `_expanded` expands the latents (training, prompts), `_absorbed`
    attends to the cached latents, with w_uk absorbed into the query and w_uv into the output (decoding).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        num_heads: int
        head_dim: int  # D, queries and keys without RoPE
        rope_dim: int  # R, the part with RoPE
        v_dim: int  # V
        kv_latent_dim: int  # C
        q_latent_dim: int | None = None  # Q; None: queries directly from h, as in V2-Lite

        def __post_init__(self) -> None:
            for field in ("num_heads", "head_dim", "v_dim", "kv_latent_dim"):
                self.require(getattr(self, field) > 0, field, "positive")
            self.require(
                self.rope_dim > 0 and self.rope_dim % 2 == 0,
                "rope_dim",
                "even and at least 2, since RoPE rotates pairs",
            )
            self.require(
                self.q_latent_dim is None or self.q_latent_dim > 0, "q_latent_dim", "positive, or null for none"
            )

        @property
        def rotary_dim(self) -> int:
            return self.rope_dim

        def weights(self, dim: int) -> list[Weight]:
            query_from = dim if self.q_latent_dim is None else self.q_latent_dim
            compression = [] if self.q_latent_dim is None else [
                Weight("w_dq", (self.q_latent_dim, dim)), Weight("q_norm.w", (self.q_latent_dim,))
            ]  # fmt: skip
            return [
                *compression,
                Weight("w_uq", (self.num_heads * self.head_dim, query_from)),
                Weight("w_qr", (self.num_heads * self.rope_dim, query_from)),
                Weight("w_dkv", (self.kv_latent_dim, dim)),
                Weight("kv_norm.w", (self.kv_latent_dim,)),
                Weight("w_kr", (self.rope_dim, dim)),
                Weight("w_uk", (self.num_heads * self.head_dim, self.kv_latent_dim)),
                Weight("w_uv", (self.num_heads * self.v_dim, self.kv_latent_dim)),
                Weight("w_o", (dim, self.num_heads * self.v_dim)),
            ]

        def score_flops(self, context: int) -> int:
            """Return the forward FLOPs per token of scores and weighted values over `context` keys, expanded."""
            return 2 * self.num_heads * (self.head_dim + self.rope_dim + self.v_dim) * context

        def cache_shapes(self) -> tuple[tuple[int, ...], ...]:
            """Return the shapes cached per token: the normalised latent (C,) and the rotated shared key (R,)."""
            return ((self.kv_latent_dim,), (self.rope_dim,))

        def cache_rope_dims(self) -> tuple[int, ...]:
            """Return how many of the last channels of each cached tensor are rotated by RoPE."""
            return (0, self.rope_dim)

        def build(self, dim: int, rope: Rope, ops: Ops = PLAIN) -> "MLA":
            return MLA(self, dim, rope, ops)

    def __init__(self, config: Config, dim: int, rope: Rope, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.scale = rope.softmax_factor * (config.head_dim + config.rope_dim) ** -0.5
        query_from = dim
        if config.q_latent_dim is not None:
            query_from = config.q_latent_dim
            self.w_dq = nn.Parameter(torch.empty(config.q_latent_dim, dim))
            self.q_norm = RMSNorm(config.q_latent_dim, LATENT_NORM_EPS)
        self.w_uq = nn.Parameter(torch.empty(config.num_heads * config.head_dim, query_from))
        self.w_qr = nn.Parameter(torch.empty(config.num_heads * config.rope_dim, query_from))
        self.w_dkv = nn.Parameter(torch.empty(config.kv_latent_dim, dim))
        self.kv_norm = RMSNorm(config.kv_latent_dim, LATENT_NORM_EPS)
        self.w_kr = nn.Parameter(torch.empty(config.rope_dim, dim))
        self.w_uk = nn.Parameter(torch.empty(config.num_heads * config.head_dim, config.kv_latent_dim))
        self.w_uv = nn.Parameter(torch.empty(config.num_heads * config.v_dim, config.kv_latent_dim))
        self.w_o = nn.Parameter(torch.empty(dim, config.num_heads * config.v_dim))

    def forward(self, h: Tensor, rotations: Tensor, cache: Cache | None = None, places: Places | None = None) -> Tensor:
        """Attend from h (B, T, d), with rotations (T, R / 2) of its positions, to itself and `cache`: (B, T, d).

        With a cache, `places` say where the tokens are. Unless these are even, rotations are (B, T, R / 2).
        """
        if cache is not None and places is not None and self.ops == PLAIN and not places.padded:
            held = cache.read(places.end)
            if has_step(held, h):
                return self._step(h, rotations, *held, places.lengths)
        linear, heads = self.ops.linear, self.config.num_heads
        c_q = h if self.config.q_latent_dim is None else self.q_norm(linear(h, self.w_dq))  # (37)
        q_nope = linear(c_q, self.w_uq).unflatten(-1, (heads, -1))  # (38), (B, T, H, D)
        q_rope = linear(c_q, self.w_qr).unflatten(-1, (heads, -1))  # (39) before its rotation, (B, T, H, R)
        c_kv = self.kv_norm(linear(h, self.w_dkv))  # (41), (B, T, C)
        k_rope = linear(h, self.w_kr).unsqueeze(2)  # (43) before its rotation, (B, T, 1, R)
        if places is None:
            assert cache is None, "a cache needs the places of the tokens"
            k_nope, v = self._keys_and_values(c_kv)
            out = rotary_attention(q_nope, q_rope, k_nope, k_rope, v, rotations, scale=self.scale)
        else:
            q_rope, k_rope = rotate(q_rope, rotations), rotate(k_rope, rotations).squeeze(2)
            latents: Tensor | Packed = c_kv
            keys: Tensor | Packed = k_rope
            if cache is not None:
                cache.write(c_kv, k_rope, places=places)
                latents, keys = cache.read(places.end)  # (B, S, C), (B, S, R)
            expands = places.first or self._expanding_pays(h.shape[1])
            if expands and isinstance(latents, Tensor) and isinstance(keys, Tensor):
                start = places.start or 0
                out = self._expanded(q_nope, q_rope, latents, keys, start=start, visible=places.visible)
            else:
                out = self._absorbed(q_nope, q_rope, latents, keys, places.visible)
        return linear(out.flatten(-2), self.w_o)  # (47)

    def _step(self, h: Tensor, rotations: Tensor, latents: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
        """Add a token per row to the cached tensors and attend from it, in one op: (B, 1, d)."""
        query = (None, None) if self.config.q_latent_dim is None else (self.w_dq, self.q_norm.w)
        rest = (self.w_uq, self.w_qr, self.w_dkv, self.kv_norm.w, self.w_kr, self.w_uk, self.w_uv, self.w_o)
        heads, eps = self.config.num_heads, LATENT_NORM_EPS
        return mla_step(
            h, rotations, (*query, *rest), latents, keys, lengths, num_heads=heads, eps=eps, scale=self.scale
        )

    def _keys_and_values(self, c_kv: Tensor) -> tuple[Tensor, Tensor]:
        """Expand latents (B, S, C) to the keys without RoPE (B, S, H, D) and values (B, S, H, V) of every head."""
        linear, heads = self.ops.linear, self.config.num_heads
        k_nope = linear(c_kv, self.w_uk).unflatten(-1, (heads, -1))  # (42)
        return k_nope, linear(c_kv, self.w_uv).unflatten(-1, (heads, -1))  # (45)

    def _expanding_pays(self, length: int) -> bool:
        """Return whether scores and values of T queries take more FLOPs with latents than expanding these does."""
        config = self.config
        latent, expanded = config.kv_latent_dim, config.head_dim + config.v_dim
        return length * (2 * latent - expanded) > latent * expanded

    def _expanded(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        c_kv: Tensor,
        k_rope: Tensor,
        *,
        start: int = 0,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Attend with the latents expanded to keys and values of every head: (B, T, H, V)."""
        k_nope, v = self._keys_and_values(c_kv)
        q = torch.cat((q_nope, q_rope), dim=-1)  # (40)
        k = torch.cat((k_nope, k_rope.unsqueeze(2).expand(-1, -1, self.config.num_heads, -1)), dim=-1)  # (44)
        return attention(q, k, v, scale=self.scale, start=start, visible=visible)  # (46)

    def _absorbed(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        c_kv: Tensor | Packed,
        k_rope: Tensor | Packed,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Attend in latent space, without expanding the S cached tokens: (B, T, H, V)."""
        w_uk, w_uv = (w.unflatten(0, (self.config.num_heads, -1)) for w in (self.w_uk, self.w_uv))  # (H, ., C)
        q_latent = torch.einsum("bthd,hdc->bthc", q_nope, w_uk.to(q_nope.dtype))
        out = latent_attention(q_latent, q_rope, c_kv, k_rope, scale=self.scale, visible=visible)
        return torch.einsum("bthc,hvc->bthv", out, w_uv.to(out.dtype))
