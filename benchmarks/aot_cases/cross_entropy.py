"""The loss of one chunk of tokens over the vocabulary of V2-Lite and V2, with and without gradients."""

from collections.abc import Iterator

import torch

from benchmarks.aot_cases import Case, shape
from dsv2.kernels.cross_entropy import head_nats

TOKENS, VOCABULARY, WIDTH = 2048, 102_400, 2048


def cases(dtype: torch.dtype) -> Iterator[Case]:
    x, w = shape(TOKENS, WIDTH, dtype=dtype), shape(VOCABULARY, WIDTH, dtype=dtype)
    targets = shape(TOKENS, dtype=torch.int64)
    yield Case("training", head_nats, (x, w, targets))
    yield Case("evaluation", head_nats, (x.detach(), w.detach(), targets))
