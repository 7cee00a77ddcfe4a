"""The routers of DeepSeek-V2, with its device limit, and V2-Lite."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.router import route_logits

TOKENS = 8192


def cases(dtype: torch.dtype) -> Iterator[Case]:
    if dtype == torch.float32:  # the only one there is
        yield Case("V2-Lite", partial(route_logits, top_k=6), (shape(TOKENS, 64, dtype=dtype),))
        limited = partial(route_logits, top_k=6, num_devices=8, max_devices=3)
        yield Case("V2", limited, (shape(TOKENS, 160, dtype=dtype),))
