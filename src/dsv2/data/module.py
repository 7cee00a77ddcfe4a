"""A source as a Lightning data module: a stream indexed by the training step, without epochs.

B sequences, T tokens per sequence.
"""

from collections.abc import Iterator
from typing import Protocol

import lightning as L

from dsv2.data.source import Batch, Source


class Schedule(Protocol):
    """The number of sequences in each step."""

    @property
    def num_steps(self) -> int: ...

    def batch_size(self, step: int) -> int:
        """Return B of this step, over all processes."""
        ...

    def first_sequence(self, step: int) -> int:
        """Return the number of sequences in all earlier steps."""
        ...


class Stream(L.LightningDataModule):
    """Batches from the trainer's global step to the last step of `schedule`, so that a resumed run sees the rest.

    Each process gets a consecutive share of a step's sequences, as large as the strategy of the trainer says.
    """

    def __init__(self, source: Source, schedule: Schedule) -> None:
        super().__init__()
        self.source, self.schedule = source, schedule

    def train_dataloader(self) -> "Steps":
        return Steps(self)


class Steps:
    """Iterates over the remaining steps.

    Not a `DataLoader`: building its iterator draws from torch's global generator, which would make a resumed run
    differ. It has no length, since Lightning would take that for the end of an epoch counted from step 0.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Batch]:
        stream = self.stream
        trainer, schedule = stream.trainer, stream.schedule
        assert trainer is not None
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches}: must be 1, since a batch is a whole step; "
                "split it into smaller ones in the training step"
            )
        for step in range(trainer.global_step, schedule.num_steps):
            size, place = schedule.batch_size(step), trainer.distributed_sampler_kwargs
            shares, own = (1, 0) if place is None else (place["num_replicas"], place["rank"])
            if size % shares:
                raise ValueError(f"batch size {size} of step {step}: must be a multiple of the {shares} shares")
            share = size // shares
            yield stream.source.train(schedule.first_sequence(step) + own * share, share)
