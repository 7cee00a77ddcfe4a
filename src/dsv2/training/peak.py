"""What this device can do at most, measured: the denominator of `perf/mfu`."""

import time
from functools import cache

import torch


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """FLOPs a second of a large square matrix product, the best of a few; measured once a process, in about 0.2 s."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192 if on_gpu else 768), (torch.bfloat16 if precision == "bf16" else torch.float32)
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        if on_gpu:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
