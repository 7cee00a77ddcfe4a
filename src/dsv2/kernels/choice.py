"""The choice between plain torch and the ops that are compiled for this machine's CPU (`dsv2.kernels.cpu`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from dsv2.kernels.cpu import library

KERNELS = ("auto", "torch", "cpu")  # auto: the compiled ops where they can be had
_chosen: ContextVar[str] = ContextVar("kernels", default="auto")


@contextmanager
def using(kernels: str) -> Iterator[None]:
    """Use these kernels within the context. Raises `library.Unavailable` for "cpu" without a way to compile them."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r}: must be one of {', '.join(KERNELS)}")
    if kernels == "cpu":
        library.load()
    token = _chosen.set(kernels)
    try:
        yield
    finally:
        _chosen.reset(token)


def compiled(*inputs: Tensor) -> bool:
    """Return whether the compiled ops are chosen and take these inputs: float32 on the CPU."""
    if _chosen.get() == "torch" or not all(x.device.type == "cpu" and x.dtype == torch.float32 for x in inputs):
        return False
    return library.available()


def in_use(device: torch.device) -> str:
    """Return the kernels that run for float32 on this device, "torch" or "cpu"; provenance records it."""
    return "cpu" if compiled(torch.empty(0, device=device)) else "torch"
