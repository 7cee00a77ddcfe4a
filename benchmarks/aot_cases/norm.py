"""RMSNorm of the latents (512, 1536) and of the hidden state, in training."""

from collections.abc import Iterator

import torch

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.norm import add_rms_norm, rms_norm

ROWS = 8 * 4096
WIDTHS = {"latent": 512, "query latent": 1536, "V2-Lite": 2048, "V2": 5120}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, d in WIDTHS.items():
        x, w = shape(ROWS, d, dtype=dtype), shape(d, dtype=dtype)
        yield Case(name, rms_norm, (x, w, 1e-6))
        if name.startswith("V2"):
            yield Case(f"{name}, added", add_rms_norm, (x, shape(ROWS, d, dtype=dtype), w, 1e-6))
