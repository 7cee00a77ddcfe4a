"""In what precision a cache stores what attention keeps of a token."""

import math
from dataclasses import dataclass

from dsv2.config import ConfigBase, ConfigError
from dsv2.kernels.quantise import PIECES, RANGE_DTYPES, Bfloat16, Grouped
from dsv2.models.attention import MLA, AttentionConfig

BITS = (16, *PIECES)


class KVPrecision:
    """Bits per cached element: 16 are bfloat16, fewer are codes with a scale and an offset for each group of channels.

    The vectors of a token are quantised by themselves, as soon as they are cached.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        bits: int = 16
        rope_bits: int | None = None  # of the channels of keys that RoPE rotates; None: bits
        group_size: int = 64  # channels with one scale and offset; a vector's last group has what is left
        range_bits: int = 16  # of scales and offsets
        hadamard: bool = False  # MLA's latent is rotated by a Hadamard matrix before it is stored

        def __post_init__(self) -> None:
            offered = ", ".join(map(str, BITS))
            self.require(self.bits in BITS, "bits", f"one of {offered}")
            self.require(self.rope_bits in (None, *BITS), "rope_bits", f"one of {offered}, or null for bits")
            self.require(self.group_size > 0, "group_size", "positive")
            self.require(self.range_bits in RANGE_DTYPES, "range_bits", "16 or 32")

        def forms(self, attention: AttentionConfig) -> tuple[tuple[Grouped | Bfloat16, ...], ...]:
            """Return, for each of `attention.cache_shapes()`, the forms of the parts of its last dimension.

            Raises ConfigError for a rotation without a latent.
            """
            if self.hadamard and not isinstance(attention, MLA.Config):
                raise ConfigError("hadamard", True, "false for attention without a latent")
            shapes = zip(attention.cache_shapes(), attention.cache_rope_dims(), strict=True)
            return tuple(self._forms(shape[-1], rope_dim) for shape, rope_dim in shapes)

        def _forms(self, width: int, rope_dim: int) -> tuple[Grouped | Bfloat16, ...]:
            rope_bits = self.bits if self.rope_bits is None else self.rope_bits
            parts = (
                [(width, self.bits)]
                if rope_bits == self.bits
                else [(width - rope_dim, self.bits), (rope_dim, rope_bits)]
            )
            return tuple(
                Bfloat16(width) if bits == 16 else Grouped(width, bits, min(self.group_size, width), self.range_bits)
                for width, bits in parts
                if width
            )

        def bytes_per_token(self, attention: AttentionConfig) -> int:
            """Return the bytes that one layer's cache holds per token, scales and offsets included."""
            return sum(
                math.prod(shape[:-1]) * sum(form.num_bytes for form in forms)
                for shape, forms in zip(attention.cache_shapes(), self.forms(attention), strict=True)
            )
