"""Real processes that compute together, with gloo on this machine, in double precision throughout."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(function: Callable[..., Any], size: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in `size` processes of one gloo group; return what each returns, by rank.

    Memory that nobody wrote is NaN there, and `.float()` keeps double precision. Results may hold tensors and plain
    values. Raises what a process raised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_rank, (function, size, folder, arguments), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(rank: int, function: Callable[..., Any], size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(size)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    with in_double():
        result = function(*arguments)
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


@contextmanager
def in_double() -> Iterator[None]:
    """Compute in float64 what the project casts to float32, so that equality can be held to a few roundings."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


@contextmanager
def group_of_one() -> Iterator[dist.ProcessGroup]:
    """This process as a gloo group of its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.new_group()
    finally:
        dist.destroy_process_group()
