"""Rotary position embedding on interleaved pairs, and its extensions to longer contexts, such as YaRN (section 3.1.4).

T tokens, R rotated width (even). `rotate` applies the output of `Rope.rotations`.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.config import ConfigBase, added
from dsv2.kernels.rope import rotate as rotate

PUBLISHED_BASE, PUBLISHED_DIM = 10000.0, 64  # of DeepSeek-V2's decoupled RoPE


class Extension:
    """A change of the frequencies by which a model trained on short contexts reads longer ones."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        factor: float = 40.0  # s: new length / original length
        original_length: int = 4096  # tokens

        def __post_init__(self) -> None:
            self.require(1 <= self.factor < math.inf, "factor", "at least 1, and finite")
            self.require(self.original_length > 0, "original_length", "positive")

        @property
        def limit(self) -> int:
            """Number of positions that the extension is for."""
            return math.floor(self.factor * self.original_length)

        @property
        def softmax_factor(self) -> float:
            """Factor on the softmax scale."""
            return 1.0

        @property
        def rotation_factor(self) -> float:
            """Factor on cos and sin."""
            return 1.0

        @abstractmethod
        def frequencies(self, base: float, dim: int, device: torch.device | None = None) -> Tensor:
            """Return the radians per position of each pair, (R / 2) float32."""


class Interpolation(Extension):
    """Position interpolation: positions are divided by the factor, so that every pair is slowed by it."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Extension.Config):
        def frequencies(self, base: float, dim: int, device: torch.device | None = None) -> Tensor:
            return plain_frequencies(base, dim, device) / self.factor


class NTK(Extension):
    """NTK-aware scaling: a larger base slows the slowest pair by the factor and the fastest not at all."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Extension.Config):
        def frequencies(self, base: float, dim: int, device: torch.device | None = None) -> Tensor:
            return plain_frequencies(self.new_base(base, dim), dim, device)

        def new_base(self, base: float, dim: int) -> float:
            """Return the base of the plain frequencies that these are; of a single pair, none can be slowed."""
            return base * self.factor ** (dim / (dim - 2)) if dim > 2 else base


class Partition(NamedTuple):
    """What YaRN does with the pairs of a head: how many keep their frequency, lie on the ramp, or are interpolated."""

    kept: int
    ramped: int
    interpolated: int


class Yarn(Extension):
    """YaRN: fast pairs are kept, slow ones interpolated, and attention is sharpened.

    The ramp between is linear in the index of the pair, as in the released checkpoints and in transformers; YaRN's own
    paper has it linear in the number of turns.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Extension.Config):
        beta_fast: float = 32.0  # pairs with more turns than this over the original length are unchanged
        beta_slow: float = 1.0  # pairs with fewer turns than this are interpolated by `factor`
        mscale: float = 0.707
        mscale_all_dim: float = 0.707

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(0 < self.beta_slow < math.inf, "beta_slow", "positive and finite")
            faster = self.beta_slow < self.beta_fast < math.inf
            self.require(faster, "beta_fast", f"more than beta_slow={self.beta_slow}, and finite")
            for name in ("mscale", "mscale_all_dim"):
                scales = 0 < self.length_scale(getattr(self, name)) < math.inf
                self.require(scales, name, "finite, with 0.1 mscale ln(factor) + 1 positive")

        def length_scale(self, mscale: float) -> float:
            """Return sqrt(t) = 0.1 mscale ln(s) + 1."""
            return 0.1 * mscale * math.log(self.factor) + 1.0

        @property
        def softmax_factor(self) -> float:
            return self.length_scale(self.mscale_all_dim) ** 2

        @property
        def rotation_factor(self) -> float:
            return self.length_scale(self.mscale) / self.length_scale(self.mscale_all_dim)

        def frequencies(self, base: float, dim: int, device: torch.device | None = None) -> Tensor:
            frequencies, ramp = plain_frequencies(base, dim, device), self._ramp(base, dim, device)
            return frequencies / self.factor * ramp + frequencies * (1 - ramp)

        def partition(self, base: float, dim: int) -> Partition:
            """Count the pairs of a head by what happens to them."""
            ramp = self._ramp(base, dim)
            kept, interpolated = int((ramp == 0).sum()), int((ramp == 1).sum())
            return Partition(kept, len(ramp) - kept - interpolated, interpolated)

        def proportional(self, base: float) -> tuple[float, float]:
            """Return beta_fast and beta_slow with which the pairs of a head are divided as in DeepSeek-V2."""
            published, turns = Yarn.Config(), self.original_length / (2 * math.pi)  # of a pair with a frequency of 1

            def beta(of_published: float) -> float:
                share = published._pair_with(of_published, PUBLISHED_BASE, PUBLISHED_DIM) / PUBLISHED_DIM
                return turns / base ** (2 * share)

            return beta(published.beta_fast), beta(published.beta_slow)

        def _ramp(self, base: float, dim: int, device: torch.device | None = None) -> Tensor:
            """Return 0 for pairs that are kept, 1 for those that are interpolated, and between, (R / 2) float32."""
            low = math.floor(self._pair_with(self.beta_fast, base, dim))
            high = math.ceil(self._pair_with(self.beta_slow, base, dim))
            low, high = max(low, 0), min(high, dim - 1)
            pair = torch.arange(dim // 2, dtype=torch.float32, device=device)
            return ((pair - low) / (high - low or 0.001)).clamp(0, 1)

        def _pair_with(self, turns: float, base: float, dim: int) -> float:
            """Return the (fractional) index of the pair with `turns` full turns over the original length."""
            return dim * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))


def plain_frequencies(base: float, dim: int, device: torch.device | None = None) -> Tensor:
    """Return the radians per position of each pair without extension, (R / 2) float32."""
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)


class Rope:
    """Computes the rotations of positions; holds no tensors."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        base: float = 10000.0
        yarn: Yarn.Config | None = None
        extension: Interpolation.Config | NTK.Config | None = added(None)  # instead of YaRN

        def __post_init__(self) -> None:
            self.require(1 < self.base < math.inf, "base", "more than 1, and finite")
            self.require(self.yarn is None or self.extension is None, "extension", "null beside yarn")

        @property
        def extended(self) -> Extension.Config | None:
            """The extension to longer contexts, of whatever kind."""
            return self.yarn or self.extension

        @property
        def limit(self) -> int | None:
            """Number of positions that the model can be given; None without an extension, which states none."""
            return None if self.extended is None else self.extended.limit

        def build(self) -> "Rope":
            return Rope(self)

    def __init__(self, config: Config) -> None:
        self.base, self.extended, self.limit = config.base, config.extended, config.limit

    @property
    def softmax_factor(self) -> float:
        """Factor on the softmax scale, which only YaRN has."""
        return 1.0 if self.extended is None else self.extended.softmax_factor

    def frequencies(self, dim: int, device: torch.device | None = None) -> Tensor:
        """Return the radians per position of each pair, (R / 2) float32."""
        if self.extended is None:
            return plain_frequencies(self.base, dim, device)
        return self.extended.frequencies(self.base, dim, device)

    def rotations(self, positions: Tensor, dim: int) -> Tensor:
        """Return rotations (..., R / 2) complex64 of integer positions (...), times the factor on cos and sin."""
        angles = positions.float().unsqueeze(-1) * self.frequencies(dim, positions.device)
        factor = 1.0 if self.extended is None else self.extended.rotation_factor
        return torch.polar(torch.full_like(angles, factor), angles)

    def require_within(self, last: int) -> None:
        """Raise ValueError if the position `last`, counted from 0, is beyond what the extension is for."""
        if self.limit is not None and last >= self.limit:
            raise ValueError(f"position {last}: must be less than {self.limit}, factor x original_length of model.rope")
