"""Buffers between canaries: a kernel that reads beyond its tensors reads NaN, one that writes there is found out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

FENCE = 64  # elements on each side; a multiple of 16 bytes, so that Triton assumes the same alignment as without
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALLOCATE: dict[Any, dict[str, Callable[..., Tensor]]] = {
    torch: {name: getattr(torch, name) for name in ("empty", "empty_like", "zeros", "zeros_like")},
    Tensor: {name: getattr(Tensor, name) for name in ("new_empty", "new_zeros")},
}
_fenced: list[Tensor] = []  # flat buffers, both fences included


def poison(dtype: torch.dtype) -> float | int:
    """The number that fills memory nobody wrote: NaN, or an index that leads nowhere near."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max // 2


def fenced_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A contiguous tensor in poisoned memory, with a fence on both sides."""
    numel = torch.Size(shape).numel()
    buffer = torch.full((numel + 2 * FENCE,), poison(dtype), dtype=dtype, device=device)
    _fenced.append(buffer)
    return buffer[FENCE : FENCE + numel].view(shape)


def fenced(x: Tensor) -> Tensor:
    """A contiguous copy of x on `DEVICE` with a fence on both sides."""
    return fenced_empty(tuple(x.shape), x.dtype, DEVICE).copy_(x.detach())


def check() -> None:
    """Raise AssertionError if one of the fences was written to."""
    for buffer in _fenced:
        for name, side in (("before", buffer[:FENCE]), ("after", buffer[-FENCE:])):
            untouched = side.isnan() if side.is_floating_point() or side.is_complex() else side == poison(side.dtype)
            assert untouched.all(), f"{buffer.numel() - 2 * FENCE} of {buffer.dtype}: written {name} the start or end"


@contextmanager
def watched() -> Iterator[None]:
    """Give torch.empty and its kin fenced and poisoned memory, and check all fences at the end."""

    def in_fences(allocate: Callable[..., Tensor], zero: bool) -> Callable[..., Tensor]:
        def allocated(*args: Any, **options: Any) -> Tensor:
            x = allocate(*args, **options)
            if x.device.type != DEVICE.type or _get_current_dispatch_mode() is not None:
                return x  # there is no memory: it is being traced
            x = fenced_empty(tuple(x.shape), x.dtype, x.device)
            return x.zero_() if zero else x

        return allocated

    _fenced.clear()
    with ExitStack() as patches:
        for owner, functions in ALLOCATE.items():
            for name, allocate in functions.items():
                patches.enter_context(mock.patch.object(owner, name, in_fences(allocate, zero="zeros" in name)))
        yield
    check()
    _fenced.clear()


@contextmanager
def unfenced() -> Iterator[None]:
    """Give torch.empty and its kin plain memory again, at offset 0, within `watched`."""
    with ExitStack() as patches:
        for owner, functions in ALLOCATE.items():
            for name, allocate in functions.items():
                patches.enter_context(mock.patch.object(owner, name, allocate))
        yield
