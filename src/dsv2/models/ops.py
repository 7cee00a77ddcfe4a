"""The only two functions in which weights meet activations, handed to every module from outside.

N rows, I input width, O output width, E experts.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from dsv2.kernels.grouped import grouped


class Ops(NamedTuple):
    linear: Callable[[Tensor, Tensor], Tensor] = F.linear  # x (..., I), w (O, I) -> (..., O)
    grouped: Callable[[Tensor, Tensor, Tensor], Tensor] = grouped  # rows (N, I), counts (E,), w (E, I, O) -> (N, O)


PLAIN = Ops()
