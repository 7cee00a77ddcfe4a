"""Data-parallel processes: each takes an equal share of a step's sequences, and the first one writes.

`torchrun` starts them. Single-process training runs the same code with a group of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.training.run import Training


class Group(NamedTuple):
    """The processes of a run."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def environment(self) -> ClusterEnvironment:
        """Return Lightning's cluster environment; by itself it mistakes a surrounding SLURM shell for a launcher."""
        return LightningEnvironment() if self.size == 1 else TorchElasticEnvironment()

    def agree(self, value: Any) -> Any:
        """Return the first process's value in all of them."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def joined(settings: Training.Config) -> Iterator[Group]:
    """Join the other processes of this run. Raises ConfigError if their number is not `settings.devices`."""
    size = int(os.environ["WORLD_SIZE"]) if TorchElasticEnvironment.detect() else 1
    if settings.devices != size:
        single = f"1 in one process; torchrun --nproc-per-node={settings.devices} -m dsv2.train ... starts more"
        valid = single if size == 1 else f"{size}, the number of processes that torchrun started"
        raise ConfigError("trainer.devices", settings.devices, valid)
    if size == 1:
        yield Group()
        return
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu:
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():  # in all of them, and not only in the last
            raise ConfigError("trainer.devices", size, f"at most the {torch.cuda.device_count()} GPUs of this machine")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Group(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(share: Tensor) -> Tensor:
    """Sum a tensor over the processes of the run."""
    if not dist.is_initialized():
        return share
    summed = share.clone()
    dist.all_reduce(summed)
    return summed


def mean(share: Tensor) -> Tensor:
    """Average a tensor over the processes of the run."""
    return total(share) / num_processes() if dist.is_initialized() else share
