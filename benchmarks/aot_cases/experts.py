"""The routed experts of DeepSeek-V2 and V2-Lite, in training and without gradients."""

from collections.abc import Iterator

import torch

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.experts import routed_experts

SIZES = {"V2-Lite": (2048, 64, 1408, 6), "V2": (5120, 160, 1536, 6)}  # d, experts, their width, experts per token


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, (d, num_experts, width, top_k) in SIZES.items():
        weights = shape(num_experts, d, 2 * width, dtype=dtype), shape(num_experts, width, d, dtype=dtype)
        x, gates = shape(1, 8192, d, dtype=dtype), shape(1, 8192, top_k, dtype=torch.float32)
        inputs = x, shape(1, 8192, top_k, dtype=torch.int64), gates, *weights
        yield Case(name, routed_experts, inputs)
        yield Case(f"{name}, inference", routed_experts, tuple(part.detach() for part in inputs))
