"""How a kernel reads a tensor: as rows, each of which lies together in memory."""

from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """Return x (..., d) as (N, d), N rows of any distance whose elements are neighbours; copied only if they are not.

    Gradients arrive in any layout: a plain sum hands back strides of 0, a join a part of a wider tensor.
    """
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()
