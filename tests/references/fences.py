"""Buffers between canaries: a kernel that reads beyond its tensors reads NaN, one that writes there is found out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

FENCE = 1 << 14  # elements: more than a block has, so that a missing mask is a failed test and no dead process
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALLOCATE: dict[Any, dict[str, Callable[..., Tensor]]] = {
    torch: {name: getattr(torch, name) for name in ("empty", "empty_like", "zeros", "zeros_like")},
    Tensor: {name: getattr(Tensor, name) for name in ("new_empty", "new_zeros")},
}
_fences: list[Tensor] = []


def poison(dtype: torch.dtype) -> float | int:
    """The number that fills memory nobody wrote: NaN, or an index that leads nowhere near."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return 1 if dtype == torch.bool else torch.iinfo(dtype).max // 2


def fenced_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, before: int = FENCE) -> Tensor:
    """A contiguous tensor in poisoned memory, with a fence on both sides."""
    numel = torch.Size(shape).numel()
    buffer = torch.full((before + numel + FENCE,), poison(dtype), dtype=dtype, device=device)
    _fences.extend((buffer[:before], buffer[before + numel :]))
    return buffer[before : before + numel].view(shape)


def fenced(x: Tensor) -> Tensor:
    """A contiguous copy of x on `DEVICE` with a fence on both sides."""
    return fenced_empty(tuple(x.shape), x.dtype, DEVICE).copy_(x.detach())


def reserved(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without fences, of any size: its memory is taken where it is written to, and nowhere else."""
    return ALLOCATE[torch]["empty"](shape, dtype=dtype, device=DEVICE)


def check() -> None:
    """Raise AssertionError if one of the fences was written to."""
    for fence in _fences:
        untouched = fence.isnan() if fence.is_floating_point() or fence.is_complex() else fence == poison(fence.dtype)
        if not untouched.all():
            raise AssertionError(f"a kernel wrote beyond a tensor of {fence.dtype}")


@contextmanager
def watched() -> Iterator[None]:
    """Give torch.empty and its kin fenced and poisoned memory, and check all fences at the end."""
    _fences.clear()
    with _allocating(FENCE):
        yield
    check()


@contextmanager
def at_offset_zero() -> Iterator[None]:
    """Within `watched`, for comparisons of storage offsets: no fence before tensors."""
    with _allocating(0):
        yield


@contextmanager
def unfenced() -> Iterator[None]:
    """Within `watched`: memory that is reserved only, for tensors that are larger than what is used of them."""
    with _allocating(None):
        yield


@contextmanager
def _allocating(before: int | None) -> Iterator[None]:
    def in_fences(allocate: Callable[..., Tensor], zero: bool) -> Callable[..., Tensor]:
        def allocated(*args: Any, **options: Any) -> Tensor:
            x = allocate(*args, **options)
            if before is None or x.device.type != DEVICE.type or _get_current_dispatch_mode() is not None:
                return x  # traced tensors have no memory
            x = fenced_empty(tuple(x.shape), x.dtype, x.device, before)
            return x.zero_() if zero else x

        return allocated

    with ExitStack() as patches:
        for owner, functions in ALLOCATE.items():
            for name, allocate in functions.items():
                patches.enter_context(mock.patch.object(owner, name, in_fences(allocate, zero="zeros" in name)))
        yield
