"""Attention of DeepSeek-V2 and of GQA models, with 4,096 tokens; V2-Lite's differs from V2's in its heads alone."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.attention import rotary_attention

LENGTH = 4096
SIZES = {"V2": (128, 128, 1, 128, 64, 128), "GQA": (32, 8, 8, 0, 128, 128), "wide": (8, 2, 2, 0, 256, 256)}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, sizes in SIZES.items():
        yield Case(name, partial(rotary_attention, scale=0.1), inputs(*sizes, dtype))


def inputs(
    heads: int, groups: int, rotated: int, nope: int, rope: int, value: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    shapes = [(heads, nope), (heads, rope), (groups, nope), (rotated, rope), (groups, value)]
    rotations = torch.empty(LENGTH, rope // 2, dtype=torch.complex64, device="meta")
    return *(shape(1, LENGTH, *sizes, dtype=dtype) for sizes in shapes), rotations
