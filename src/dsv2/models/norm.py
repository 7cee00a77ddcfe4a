"""RMSNorm, of the residual stream and of MLA's latents (section 3.1.2)."""

import torch
from torch import Tensor, nn

from dsv2.kernels.norm import rms_norm


class RMSNorm(nn.Module):
    """x / rms(x) * w over the last axis of width `dim`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.w = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.w, self.eps)
