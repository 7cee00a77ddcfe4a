"""Vectors as packed integer codes, with a scale and an offset for each group of channels.

W channels in n groups, L = 2^bits - 1 the largest code.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.choice import form

# The powers of two into which a code is cut; pieces of one size are packed together, 8 / size of them in a byte.
PIECES = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,)}
RANGE_DTYPES = {16: torch.float16, 32: torch.float32}  # of scales and offsets, by their bits
ROUNDING = 2.0**-21  # of a value in float32, by a few operations, relative to the largest of its group


class Grouped(NamedTuple):
    """Asymmetric codes of vectors (..., W): a value is stored as offset + scale x code, with a code of `bits` bits.

    Groups are consecutive channels, the last one of what is left. A value is off by half a scale at most, which is
    (largest - smallest value of its group) / (2 L) and a rounding. With `range_bits` of 16, values beyond 65,504 become
    65,504, and no scale is below 2^-24. A group that holds infinity or NaN becomes NaN.
    """

    width: int
    bits: int
    group_size: int = 64
    range_bits: int = 16

    @property
    def num_groups(self) -> int:
        return -(-self.width // self.group_size)

    @property
    def num_bytes(self) -> int:
        """Bytes per vector."""
        return packed_width(self.width, self.bits) + 2 * self.num_groups * self.range_bits // 8

    def shapes(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """Return shape and dtype of the tensors that hold one vector."""
        codes = (packed_width(self.width, self.bits),), torch.uint8
        return codes, ((self.num_groups, 2), RANGE_DTYPES[self.range_bits])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return packed codes (..., bytes) uint8 and ranges (..., n, 2), the scale and offset of each group."""
        values = self._grouped(x.float())
        low, high = values.aminmax(dim=-1)
        finite, dtype = (high - low).isfinite(), RANGE_DTYPES[self.range_bits]
        most = torch.finfo(dtype).max
        offset = _rounded_down(low.clamp(min=-most, max=most), dtype).float()
        step = (high.clamp(max=most) - offset) / (2**self.bits - 1)
        scale = -_rounded_down(-step.clamp(min=_smallest(dtype)), dtype).float()
        codes = ((values - offset[..., None]) / scale[..., None]).round_().clamp_(0, 2**self.bits - 1).nan_to_num_()
        codes = codes.to(torch.uint8).flatten(-2)[..., : self.width]
        ranges = torch.stack((scale, offset), dim=-1).masked_fill_(~finite[..., None], torch.nan)
        return pack(codes, self.bits), ranges.to(dtype)

    def decode(self, codes: Tensor, ranges: Tensor) -> Tensor:
        """Return the values (..., W) float32."""
        if form("dequantise", codes.new_empty(0, dtype=torch.float32)) == "cpu":
            return torch.ops.dsv2.dequantise(codes, ranges, self.bits, self.width, self.group_size)
        values = self._grouped(unpack(codes, self.bits, self.width)).float()
        scale, offset = ranges.float()[..., None].unbind(-2)
        return values.mul_(scale).add_(offset).flatten(-2)[..., : self.width]

    def error_bound(self, ranges: Tensor) -> Tensor:
        """Return by how much a value of each group may be off, (..., n), unless it was beyond what ranges hold."""
        scale, offset = ranges.float().unbind(-1)
        largest = torch.maximum(offset.abs(), (offset + scale * (2**self.bits - 1)).abs())
        return scale / 2 + ROUNDING * largest

    def _grouped(self, x: Tensor) -> Tensor:
        """Return x (..., W) as (..., n, group size); the last channel is repeated, which widens no range."""
        missing = self.num_groups * self.group_size - self.width
        if missing:
            x = torch.cat((x, x[..., -1:].expand(*x.shape[:-1], missing)), dim=-1)
        return x.unflatten(-1, (self.num_groups, self.group_size))


class Bfloat16(NamedTuple):
    """Vectors of W channels as bfloat16, beside `Grouped`: 16 bits without scales."""

    width: int

    @property
    def num_bytes(self) -> int:
        return 2 * self.width

    def shapes(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        return (((self.width,), torch.bfloat16),)

    def encode(self, x: Tensor) -> tuple[Tensor]:
        return (x.to(torch.bfloat16),)

    def decode(self, values: Tensor) -> Tensor:
        return values.float()


# ---- packing ---------------------------------------------------------------------------------------------------------


def packed_width(width: int, bits: int) -> int:
    """Return the bytes of `width` codes."""
    return sum(-(-width * size // 8) for size in PIECES[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (..., W) uint8 below 2^bits, one piece after the other: (..., bytes).

    A piece of all codes is cut in as many consecutive parts as a byte holds, of which one byte has a code each: all
    shifts are of long rows.
    """
    parts, shift = [], 0
    for size in PIECES[bits]:
        pieces = (codes >> shift) & (2**size - 1)
        if size < 8:
            length = -(-codes.shape[-1] * size // 8)
            first, *others = F.pad(pieces, (0, 8 // size * length - codes.shape[-1])).split(length, dim=-1)
            pieces = first.clone()
            for place, other in enumerate(others, 1):
                pieces |= other << (place * size)
        parts.append(pieces)
        shift += size
    return torch.cat(parts, dim=-1)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Return the codes (..., W) uint8 of `pack`."""
    codes, shift, start = packed.new_zeros(*packed.shape[:-1], width), 0, 0
    for size in PIECES[bits]:
        length = -(-width * size // 8)
        pieces = packed[..., start : start + length]
        for place, part in enumerate(codes.split(length, dim=-1)):
            part |= ((pieces[..., : part.shape[-1]] >> (place * size)) & (2**size - 1)) << shift
        shift, start = shift + size, start + length
    return codes


# ---- rounding of ranges ----------------------------------------------------------------------------------------------


def _smallest(dtype: torch.dtype) -> float:
    """Return the smallest positive scale."""
    return 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny


def _rounded_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return finite x in `dtype`, never larger than it was, so that a range covers its group."""
    near = x.to(dtype)
    if dtype == torch.float32:
        return near
    bits = near.view(torch.int16)  # sign and magnitude
    below = torch.where(near > 0, bits - 1, torch.where(near < 0, bits + 1, -(2**15) + 1)).to(torch.int16)
    return torch.where(near.float() > x, below.view(dtype), near)


# ---- rotation --------------------------------------------------------------------------------------------------------


def hadamard(x: Tensor) -> Tensor:
    """Rotate x (..., W) by an orthonormal Hadamard matrix, which is its own inverse; it spreads a large channel.

    If W is no power of two, blocks of the largest power of two that divides it are rotated.
    """
    block = x.shape[-1] & -x.shape[-1]
    out, half = x.unflatten(-1, (-1, block)), 1
    while half < block:
        first, second = out.unflatten(-1, (-1, 2, half)).unbind(-2)
        out = torch.stack((first + second, first - second), dim=-2).flatten(-3)
        half *= 2
    return (out * block**-0.5).flatten(-2)
