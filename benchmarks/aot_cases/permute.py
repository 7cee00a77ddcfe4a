"""Rows of tokens to six experts each and back, at the widths of DeepSeek-V2 and V2-Lite."""

from collections.abc import Iterator

import torch

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.permute import gather_rows, sort_by_expert, weighted_sum

TOKENS, TOP_K = 8192, 6
SIZES = {"V2-Lite": (2048, 64), "V2": (5120, 160)}  # d, experts


def cases(dtype: torch.dtype) -> Iterator[Case]:
    pairs = shape(TOKENS * TOP_K, dtype=torch.int64)
    for name, (d, num_experts) in SIZES.items():
        yield Case(f"{name}, sort", sort_by_expert, (pairs, num_experts))
        yield Case(f"{name}, gather", gather_rows, (shape(TOKENS, d, dtype=dtype), pairs, pairs, TOP_K))
        gates = shape(TOKENS, TOP_K, dtype=dtype)
        yield Case(f"{name}, sum", weighted_sum, (shape(TOKENS * TOP_K, d, dtype=dtype), gates, pairs, pairs))
