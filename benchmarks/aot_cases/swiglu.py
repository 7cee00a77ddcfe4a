"""SwiGLU's elementwise part of an expert and of a dense layer, in training."""

from collections.abc import Iterator

import torch

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.swiglu import swiglu

ROWS = 8 * 4096
WIDTHS = {"expert of V2-Lite": 1408, "expert of V2": 1536, "dense layer of V2": 12288}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, width in WIDTHS.items():
        yield Case(name, swiglu, (shape(ROWS, 2 * width, dtype=dtype),))
