"""The product of activations and a weight. Specification: `torch.nn.functional.linear`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.choice import form

FEW = 64  # rows up to which the compiled op is the faster one


def linear(x: Tensor, w: Tensor) -> Tensor:
    """Multiply x (..., I) by the transpose of w (O, I): (..., O).

    The compiled op is for inference; in it, a row's result does not depend on the other rows.
    """
    if not torch.is_grad_enabled() and x.numel() <= FEW * x.shape[-1] and form("linear", x, w) == "cpu":
        return torch.ops.dsv2.linear(x, w)
    return F.linear(x, w)
