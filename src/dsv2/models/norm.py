"""RMSNorm, of the residual stream and of MLA's latents (section 3.1.2)."""

import torch
from torch import Tensor, nn

from dsv2.kernels.norm import add_rms_norm, rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * w over the last axis of width `dim`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.w = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.w, self.eps)

    def after(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x + delta, and its norm."""
        return (x, self(x)) if delta is None else add_rms_norm(x, delta, self.w, self.eps)
