"""Products in FP8: weights as e4m3 in blocks of 128 x 128, activations in groups of 128 channels, float32 sums.

N rows, I input width, O output width, E experts.

A block or group is stored as codes and one float32 scale, its largest magnitude / 448. Finite values saturate; since
e4m3 has no infinity, infinity becomes NaN like NaN itself, and one of them makes its whole block or group NaN.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.grouped import grouped as grouped_product

BLOCK = 128
E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448


class Scaled(NamedTuple):
    """Rows (..., I) or matrices (..., O, I) as codes and scales; a scale is for `height` x BLOCK codes."""

    codes: Tensor  # e4m3, of the shape of what was quantised
    scales: Tensor  # float32, (..., ceil(I / BLOCK)) or (..., ceil(O / BLOCK), ceil(I / BLOCK))
    height: int

    def decode(self) -> Tensor:
        """Return the values in float32."""
        scales = self.scales.repeat_interleave(BLOCK, -1)[..., : self.codes.shape[-1]]
        if self.height > 1:
            scales = scales.repeat_interleave(self.height, -2)[..., : self.codes.shape[-2], :]
        return self.codes.float() * scales


def to_e4m3(x: Tensor) -> Tensor:
    """Round x to e4m3: at most 448 in magnitude, halfway cases to even, and NaN for what is not finite.

    Torch's own conversion saturates infinity on a CPU, and not even finite values elsewhere.
    """
    return x.masked_fill(x.isinf(), torch.nan).clamp(-LARGEST, LARGEST).to(E4M3)


def quantise_rows(x: Tensor) -> Scaled:
    """Quantise activations (..., I) in groups of BLOCK channels."""
    return _scaled(x.unsqueeze(-2), 1)


def quantise_blocks(w: Tensor) -> Scaled:
    """Quantise weights (..., O, I) in blocks of BLOCK x BLOCK."""
    return _scaled(w, BLOCK)


def _scaled(x: Tensor, height: int) -> Scaled:
    rows, columns = x.shape[-2:]
    padded = F.pad(x.float(), (0, -columns % BLOCK, 0, -rows % height))  # zeros raise no largest magnitude
    blocks = padded.unflatten(-1, (-1, BLOCK)).unflatten(
        -3, (-1, height)
    )  # (..., O / height, height, I / BLOCK, BLOCK)
    scales = (blocks.abs().amax((-3, -1)) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    codes = to_e4m3(blocks / scales[..., None, :, None]).flatten(-4, -3).flatten(-2)[..., :rows, :columns]
    if height == 1:
        return Scaled(codes.squeeze(-2), scales.squeeze(-2), height)
    return Scaled(codes, scales, height)


def linear(x: Tensor, w: Tensor) -> Tensor:
    """Multiply x (..., I) by w (O, I): (..., O) bfloat16. Raises ValueError if a gradient is wanted, which it lacks."""
    _require_no_gradient(x, w)
    out = _product(quantise_rows(x.flatten(0, -2)), quantise_blocks(w))
    return out.unflatten(0, x.shape[:-1])


def grouped(rows: Tensor, counts: Tensor, w: Tensor) -> Tensor:
    """Multiply rows (N, I), in blocks of counts (E,), by w (E, I, O): (N, O) bfloat16. See `linear`."""
    _require_no_gradient(rows, w)
    x, weights = quantise_rows(rows), quantise_blocks(w.mT)
    if not _on_tensor_cores(x.codes, weights.codes):
        return grouped_product(x.decode(), counts, weights.decode().mT).to(torch.bfloat16)
    parts = zip(x.codes.split(counts.tolist()), x.scales.split(counts.tolist()), strict=True)
    return torch.cat(
        [
            _product(Scaled(*part, 1), Scaled(weights.codes[expert], weights.scales[expert], BLOCK))
            for expert, part in enumerate(parts)
        ]
    )


def _product(x: Scaled, w: Scaled) -> Tensor:
    """Multiply rows (N, I) by w (O, I): (N, O) bfloat16; emulated where the device has no product of scaled blocks."""
    if _on_tensor_cores(x.codes, w.codes):
        return scaled_product(x, w)
    return F.linear(x.decode(), w.decode()).to(torch.bfloat16)


def scaled_product(x: Scaled, w: Scaled) -> Tensor:
    """Multiply rows (N, I) by w (O, I) with I and O multiples of BLOCK, on a GPU's tensor cores: (N, O) bfloat16."""
    num_rows = len(x.codes)
    missing = -num_rows % 4  # cuBLAS takes multiples of 4
    codes = F.pad(x.codes.view(torch.uint8), (0, 0, 0, missing)).view(E4M3)
    row_scales = F.pad(x.scales, (0, 0, 0, missing)).t().contiguous().t()  # a group's scales of all rows together
    block_scales = F.pad(w.scales, (0, -w.scales.shape[1] % 4))  # (O / BLOCK, blocks of I), a multiple of 4 of them
    return F.scaled_mm(
        codes,
        w.codes.t(),
        row_scales,
        F.ScalingType.BlockWise1x128,
        block_scales.t(),
        F.ScalingType.BlockWise128x128,
        output_dtype=torch.bfloat16,
    )[:num_rows]


def _on_tensor_cores(x: Tensor, w: Tensor) -> bool:
    """Whether codes x (N, I) and w (..., O, I) are multiplied by the device's product of scaled blocks."""
    whole = x.numel() > 0 and w.shape[-1] % BLOCK == 0 and w.shape[-2] % BLOCK == 0
    return (
        whole and x.is_cuda and torch.version.cuda is not None and torch.cuda.get_device_capability(x.device) == (9, 0)
    )


def _require_no_gradient(*factors: Tensor) -> None:
    if torch.is_grad_enabled() and any(factor.requires_grad for factor in factors):
        raise ValueError("products in FP8 have no gradient: they are for inference, under torch.no_grad()")
