"""Decoding with DeepSeek-V2 and V2-Lite: 64 requests of 4,096 tokens, from a cache in full and in 8 bits."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.mla_decode import mla_decode

BATCH, LENGTH, LATENT, ROPE = 64, 4096, 512, 64
HEADS = {"V2": 128, "V2-Lite": 16}


def cases(dtype: torch.dtype) -> Iterator[Case]:
    for name, heads in HEADS.items():
        queries = [shape(BATCH, heads, width, dtype=dtype).detach() for width in (LATENT, ROPE)]
        c_kv, k_rope = (shape(BATCH, LENGTH, width, dtype=dtype).detach() for width in (LATENT, ROPE))
        lengths = torch.empty(BATCH, dtype=torch.int64, device="meta")
        scales = shape(BATCH, LENGTH, dtype=torch.float32).detach()
        yield Case(name, partial(mla_decode, scale=0.1), (*queries, c_kv, k_rope, lengths))
        quantised = partial(mla_decode, scale=0.1, scales=scales)
        yield Case(f"{name} int8", quantised, (*queries, c_kv.to(torch.int8), k_rope, lengths))
