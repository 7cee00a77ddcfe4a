"""What `benchmarks.aot_kernels` compiles: a file for each Triton op, calls of its public function with shapes alone.

Each file defines `cases(dtype)`, which yields a `Case` for each call. Compiled is what the call would launch and, if an
input is differentiated, its backward.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    name: str  # of the sizes, such as "V2-Lite"; the kernel, the dtype and the architecture are added to it
    function: Callable[..., Any]
    inputs: tuple[Any, ...]


def shape(*sizes: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory; differentiated if its dtype can be."""
    return torch.empty(sizes, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)
