"""Grouped-query attention; MHA has as many key-value heads as heads, MQA has one (section 2.1.1).

B batch, T tokens, S keys, d model width, H heads, G key-value heads, D head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsv2.config import ConfigBase
from dsv2.kernels.attention import attention, rotary_attention
from dsv2.kernels.decode import gqa_step, has_step
from dsv2.kernels.packed import Packed
from dsv2.models.attention.cache import Cache, Places
from dsv2.models.norm import RMSNorm
from dsv2.models.ops import PLAIN, Ops
from dsv2.models.rope import Rope, rotate
from dsv2.models.weights import Weight

KEY_NORM_EPS = 1e-6  # independent of the model's norm_eps, like MLA's latent norms


class GQA(nn.Module):
    """softmax(q k / sqrt(D)) v, RoPE on the last `rope_dim` channels of every head; caches rotated keys and values."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        num_heads: int
        num_kv_heads: int
        head_dim: int
        rope_dim: int | None = None  # None: the whole head
        key_norm: bool = False  # RMSNorm of each head's key before RoPE, one weight for all heads

        def __post_init__(self) -> None:
            self.require(self.num_heads > 0, "num_heads", "positive")
            divides = self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads == 0
            self.require(divides, "num_kv_heads", f"a divisor of num_heads={self.num_heads}")
            self.require(self.head_dim > 0, "head_dim", "positive")
            if self.rope_dim is None:
                self.require(self.head_dim % 2 == 0, "head_dim", "even, since RoPE rotates pairs")
            else:
                fits = 0 < self.rope_dim <= self.head_dim and self.rope_dim % 2 == 0
                self.require(fits, "rope_dim", f"even and between 2 and head_dim={self.head_dim}")

        @property
        def rotary_dim(self) -> int:
            return self.head_dim if self.rope_dim is None else self.rope_dim

        def weights(self, dim: int) -> list[Weight]:
            heads, groups = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
            shapes = {"w_q": (heads, dim), "w_k": (groups, dim), "w_v": (groups, dim), "w_o": (dim, heads)}
            norm = [Weight("k_norm.w", (self.head_dim,))] if self.key_norm else []
            return [*(Weight(name, shape) for name, shape in shapes.items()), *norm]

        def score_flops(self, context: int) -> int:
            """Return the forward FLOPs per token of scores and weighted values over `context` keys."""
            return 2 * self.num_heads * (self.head_dim + self.head_dim) * context

        def cache_shapes(self) -> tuple[tuple[int, ...], ...]:
            """Return the shapes cached per token: keys (G, D) and values (G, D)."""
            return ((self.num_kv_heads, self.head_dim), (self.num_kv_heads, self.head_dim))

        def cache_rope_dims(self) -> tuple[int, ...]:
            """Return how many of the last channels of each cached tensor are rotated by RoPE."""
            return (self.rotary_dim, 0)

        def build(self, dim: int, rope: Rope, ops: Ops = PLAIN) -> "GQA":
            return GQA(self, dim, rope, ops)

    def __init__(self, config: Config, dim: int, rope: Rope, ops: Ops = PLAIN) -> None:
        super().__init__()
        self.config, self.ops = config, ops
        self.scale = rope.softmax_factor * config.head_dim**-0.5
        heads, groups = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.w_q = nn.Parameter(torch.empty(heads, dim))
        self.w_k = nn.Parameter(torch.empty(groups, dim))
        self.w_v = nn.Parameter(torch.empty(groups, dim))
        self.w_o = nn.Parameter(torch.empty(dim, heads))
        self.k_norm = RMSNorm(config.head_dim, KEY_NORM_EPS) if config.key_norm else None

    def forward(self, h: Tensor, rotations: Tensor, cache: Cache | None = None, places: Places | None = None) -> Tensor:
        """Attend from h (B, T, d), with rotations (T, R / 2) of its positions, to itself and `cache`: (B, T, d).

        With a cache, `places` say where the tokens are. Unless these are even, rotations are (B, T, R / 2).
        """
        if cache is not None and places is not None and self.ops == PLAIN and not places.padded:
            held = cache.read(places.end)
            if has_step(held, h):
                return self._step(h, rotations, *held, places.lengths)
        return self.ops.linear(self.attend(h, rotations, cache, places).flatten(-2), self.w_o)

    def attend(self, h: Tensor, rotations: Tensor, cache: Cache | None = None, places: Places | None = None) -> Tensor:
        """Return the output of every head before the output projection, (B, T, H, D)."""
        linear, head_dim = self.ops.linear, self.config.head_dim
        q = linear(h, self.w_q).unflatten(-1, (-1, head_dim))  # (B, T, H, D)
        k = linear(h, self.w_k).unflatten(-1, (-1, head_dim))  # (B, T, G, D)
        k = k if self.k_norm is None else self.k_norm(k)
        v = linear(h, self.w_v).unflatten(-1, (-1, head_dim))  # (B, T, G, D)
        if places is None:
            assert cache is None, "a cache needs the places of the tokens"
            return rotary_attention(*self._parts(q), *self._parts(k), v, rotations, scale=self.scale)
        q, k = self._rotate(q, rotations), self._rotate(k, rotations)
        keys: Tensor | Packed = k
        values: Tensor | Packed = v
        if cache is not None:
            cache.write(k, v, places=places)
            keys, values = cache.read(places.end)  # (B, S, G, D)
        return attention(q, keys, values, scale=self.scale, start=places.start or 0, visible=places.visible)

    def _step(self, h: Tensor, rotations: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """Add a token per row to the cached tensors and attend from it, in one op: (B, 1, d)."""
        weights = (self.w_q, self.w_k, self.w_v, None if self.k_norm is None else self.k_norm.w, self.w_o)
        return gqa_step(h, rotations, weights, keys, values, lengths, eps=KEY_NORM_EPS, scale=self.scale)

    def _rotate(self, x: Tensor, rotations: Tensor) -> Tensor:
        nope, rope = self._parts(x)
        return torch.cat((nope, rotate(rope, rotations)), dim=-1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split heads (..., D) into the channels without RoPE, which may be none, and those with."""
        rope_dim = self.config.rotary_dim
        nope, rope = x.split([self.config.head_dim - rope_dim, rope_dim], dim=-1)
        return nope, rope
