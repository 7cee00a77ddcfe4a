"""Rotation of the queries' rotated channels and of the key that all heads share, in training."""

from collections.abc import Iterator

import torch

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.rope import rotate

BATCH, LENGTH, WIDTH = 8, 4096, 64
HEADS = {"shared key": 1, "queries of V2-Lite": 16, "queries of V2": 128}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    rotations = shape(LENGTH, WIDTH // 2, dtype=torch.complex64)
    for name, heads in HEADS.items():
        yield Case(name, rotate, (shape(BATCH, LENGTH, heads, WIDTH, dtype=dtype), rotations))
