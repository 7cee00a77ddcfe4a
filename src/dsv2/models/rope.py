"""Rotary position embedding on interleaved pairs, and YaRN (section 3.1.4).

T tokens, R rotated width (even). `rotate` applies the output of `Rope.rotations`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv2.config import ConfigBase
from dsv2.kernels.rope import rotate as rotate


class Yarn:
    """Parameters of YaRN: the extension of the context, and which frequencies are interpolated."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        factor: float = 40.0  # s: new length / original length
        original_length: int = 4096  # tokens
        beta_fast: float = 32.0  # pairs with more turns than this over the original length are unchanged
        beta_slow: float = 1.0  # pairs with fewer turns than this are interpolated by `factor`
        mscale: float = 0.707
        mscale_all_dim: float = 0.707

        def __post_init__(self) -> None:
            self.require(1 <= self.factor < math.inf, "factor", "at least 1, and finite")
            self.require(self.original_length > 0, "original_length", "positive")
            self.require(0 < self.beta_slow < math.inf, "beta_slow", "positive and finite")
            faster = self.beta_slow < self.beta_fast < math.inf
            self.require(faster, "beta_fast", f"more than beta_slow={self.beta_slow}, and finite")
            for name in ("mscale", "mscale_all_dim"):
                scales = 0 < self.length_scale(getattr(self, name)) < math.inf
                self.require(scales, name, "finite, with 0.1 mscale ln(factor) + 1 positive")

        def length_scale(self, mscale: float) -> float:
            """Return sqrt(t) = 0.1 mscale ln(s) + 1."""
            return 0.1 * mscale * math.log(self.factor) + 1.0


class Rope:
    """Computes the rotations of positions; holds no tensors."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        base: float = 10000.0
        yarn: Yarn.Config | None = None

        def __post_init__(self) -> None:
            self.require(1 < self.base < math.inf, "base", "more than 1, and finite")

        def build(self) -> "Rope":
            return Rope(self)

    def __init__(self, config: Config) -> None:
        self.base, self.yarn = config.base, config.yarn

    @property
    def softmax_factor(self) -> float:
        """YaRN's factor on the softmax scale; 1 without YaRN."""
        return self.yarn.length_scale(self.yarn.mscale_all_dim) ** 2 if self.yarn else 1.0

    def frequencies(self, dim: int, device: torch.device | None = None) -> Tensor:
        """Return the radians per position of each pair, (R / 2) float32."""
        pairs = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
        frequencies = 1.0 / self.base**pairs
        if self.yarn is None:
            return frequencies
        low = math.floor(self._turns_at(self.yarn.beta_fast, dim))
        high = math.ceil(self._turns_at(self.yarn.beta_slow, dim))
        low, high = max(low, 0), min(high, dim - 1)
        pair = torch.arange(dim // 2, dtype=torch.float32, device=device)
        ramp = ((pair - low) / (high - low or 0.001)).clamp(0, 1)  # 0: unchanged, 1: interpolated
        return frequencies / self.yarn.factor * ramp + frequencies * (1 - ramp)

    def _turns_at(self, turns: float, dim: int) -> float:
        """Return the (fractional) index of the pair with `turns` full turns over the original length."""
        assert self.yarn is not None
        return dim * math.log(self.yarn.original_length / (turns * 2 * math.pi)) / (2 * math.log(self.base))

    def rotations(self, positions: Tensor, dim: int) -> Tensor:
        """Return rotations (..., R / 2) complex64 of integer positions (...), times YaRN's factor on cos and sin."""
        angles = positions.float().unsqueeze(-1) * self.frequencies(dim, positions.device)
        factor = 1.0
        if self.yarn is not None:
            factor = self.yarn.length_scale(self.yarn.mscale) / self.yarn.length_scale(self.yarn.mscale_all_dim)
        return torch.polar(torch.full_like(angles, factor), angles)
