"""The processes of a run: each takes an equal share of a step's sequences, and the first one writes.

`python -m dsv2.train` starts them by itself, or `torchrun` does. Single-process training runs the same code with a
group of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.distributed.mesh import Mesh
from dsv2.training.run import Run


class PeerLost(RuntimeError):
    """Another process of the run ended, or was not heard of for too long."""


class Group(NamedTuple):
    """The processes of a run."""

    rank: int = 0
    size: int = 1
    mesh: Mesh | None = None  # None in a single process

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


def started() -> int:
    """Return the number of processes that a launcher started, this one included; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if TorchElasticEnvironment.detect() else 1


def require_devices(run: Run.Config) -> None:
    """Raise ConfigError for more processes than GPUs, one process each, if the run is to be on GPUs."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", run.mesh.size))
    if _on_gpu(run) and here > torch.cuda.device_count():
        valid = f"such that dp x ep x pp is at most {torch.cuda.device_count()}, the GPUs of this machine"
        raise ConfigError(run.mesh.axis, run.mesh.largest, valid)


@contextmanager
def joined(run: Run.Config) -> Iterator[Group]:
    """Join the other processes of this run. Raises ConfigError if their number is not that of `run.mesh`."""
    size, settings = started(), run.mesh
    if settings.size != size:
        single = "1 in Python and notebooks; python -m dsv2.train starts more processes"
        valid = single if size == 1 else f"such that dp x ep x pp is {size}, the processes that torchrun started"
        raise ConfigError(settings.axis, settings.largest, valid)
    if size == 1:
        yield Group()
        return
    require_devices(run)
    if _on_gpu(run):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if _on_gpu(run) else "gloo", timeout=timedelta(seconds=settings.timeout))
    try:
        yield Group(dist.get_rank(), size, settings.build())
    finally:
        dist.destroy_process_group()


def _on_gpu(run: Run.Config) -> bool:
    return run.trainer.accelerator != "cpu" and torch.cuda.is_available()


def is_loss_of_peer(error: BaseException) -> bool:
    """Whether an error is of communication with the other processes."""
    text = str(error)
    named = any(word in text for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"))
    return dist.is_initialized() and (isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and named))


def num_processes() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(share: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum a tensor over the processes of the run, or those of a group."""
    if not dist.is_initialized():
        return share
    summed = share.clone()
    dist.all_reduce(summed, group=group)
    return summed


def mean(share: Tensor) -> Tensor:
    """Average a tensor over the processes of the run."""
    return total(share) / num_processes() if dist.is_initialized() else share
