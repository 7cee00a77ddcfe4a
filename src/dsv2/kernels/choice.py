"""The choice between plain torch, the ops compiled for this machine's CPU (`dsv2.kernels.cpu`) and those in Triton."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from dsv2.kernels.cpu import library
from dsv2.kernels.triton import device as triton

KERNELS = ("auto", "torch", "cpu", "triton")  # auto: the ops compiled for the CPU where they can be had
OPS = {  # the ops that have another form than plain torch
    "cpu": ("attention", "decode", "dequantise", "experts", "head", "linear", "norm", "router", "swiglu"),
    "triton": ("attention", "experts", "head", "mla_decode", "norm", "permute", "rope", "router", "swiglu"),
}
HALF_OR_SINGLE = (torch.float32, torch.bfloat16, torch.float16)
_chosen: ContextVar[str | None] = ContextVar("kernels", default=None)  # None: plain torch
_ops: ContextVar[Collection[str] | None] = ContextVar("ops", default=None)


@contextmanager
def using(kernels: str, ops: Collection[str] | None = None) -> Iterator[None]:
    """Use these kernels within the context, for these ops alone if they are given.

    Raises `Unavailable` for "cpu" without a way to compile them, and for "triton" without Triton or a device for it.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r}: must be one of {', '.join(KERNELS)}")
    if kernels in ("cpu", "triton"):
        (library if kernels == "cpu" else triton).load()
    tokens = _chosen.set(kernels), _ops.set(_ops.get() if ops is None else ops)
    try:
        yield
    finally:
        _chosen.reset(tokens[0])
        _ops.reset(tokens[1])


@contextmanager
def preferring(kernels: str) -> Iterator[None]:
    """Use these kernels within the context unless others are chosen around it."""
    with using(_chosen.get() or kernels):
        yield


def form(op: str, *inputs: Tensor) -> str:
    """Return the form of an op that is chosen and takes these inputs: "torch", "cpu" or "triton".

    The ops for the CPU take float32 there, those in Triton float32, bfloat16 and float16 on one device.
    """
    kernels, ops = _chosen.get(), _ops.get()
    if kernels in (None, "torch") or (ops is not None and op not in ops):
        return "torch"
    if kernels == "triton":
        takes = all(triton.runs_on(x.device) and x.dtype in HALF_OR_SINGLE for x in inputs)
        return "triton" if takes and op in OPS["triton"] else "torch"
    for x in inputs:  # a loop, since this is asked for every op of a step that may take a millisecond
        if not x.is_cpu or x.dtype is not torch.float32:
            return "torch"
    return "cpu" if op in OPS["cpu"] and library.available() else "torch"


def in_use(device: torch.device) -> str:
    """Return the kernels that run for float32 on this device, "torch", "cpu" or "triton"; provenance records it."""
    return form("norm", torch.empty(0, device=device))
