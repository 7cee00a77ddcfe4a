"""The choice between plain torch and the ops that are compiled for this machine's CPU (`dsv2.kernels.cpu`)."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from dsv2.kernels.cpu import library

KERNELS = ("auto", "torch", "cpu")  # auto: the compiled ops where they can be had
COMPILED = ("attention", "experts", "head", "norm", "swiglu")  # the ops that have a compiled form
_chosen: ContextVar[str] = ContextVar("kernels", default="torch")
_ops: ContextVar[Collection[str]] = ContextVar("ops", default=COMPILED)


@contextmanager
def using(kernels: str, ops: Collection[str] | None = None) -> Iterator[None]:
    """Use these kernels within the context, for these ops alone if they are given.

    Raises `library.Unavailable` for "cpu" without a way to compile them.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r}: must be one of {', '.join(KERNELS)}")
    if kernels == "cpu":
        library.load()
    tokens = _chosen.set(kernels), _ops.set(_ops.get() if ops is None else ops)
    try:
        yield
    finally:
        _chosen.reset(tokens[0])
        _ops.reset(tokens[1])


def compiled(op: str, *inputs: Tensor) -> bool:
    """Return whether the compiled form of an op is chosen and takes these inputs: float32 on the CPU."""
    if _chosen.get() == "torch" or op not in _ops.get():
        return False
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in inputs) and library.available()


def in_use(device: torch.device) -> str:
    """Return the kernels that run for float32 on this device, "torch" or "cpu"; provenance records it."""
    return "cpu" if compiled("norm", torch.empty(0, device=device)) else "torch"
