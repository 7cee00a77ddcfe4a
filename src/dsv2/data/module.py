"""A step-indexed stream for Lightning: it continues at whatever step the trainer is."""

from collections.abc import Iterator
from typing import Any, Protocol

import lightning as L
from torch.utils.data import DataLoader, IterableDataset

from dsv2.data.source import Batch, Source


class Batches(Protocol):
    """How many sequences each step takes."""

    @property
    def num_steps(self) -> int: ...

    def batch_size(self, step: int) -> int: ...

    def first_sequence(self, step: int) -> int: ...


class Stream(L.LightningDataModule):
    """Training batches of steps `global_step` to the last."""

    def __init__(self, source: Source, batches: Batches) -> None:
        super().__init__()
        self.source, self.batches = source, batches

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return DataLoader(_Steps(self.source, self.batches, self.trainer), batch_size=None, num_workers=0)


class _Steps(IterableDataset[Batch]):
    def __init__(self, source: Source, batches: Batches, trainer: L.Trainer) -> None:
        self.source, self.batches, self.trainer = source, batches, trainer

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.trainer.global_step, self.batches.num_steps):
            yield self.source.train(self.batches.first_sequence(step), self.batches.batch_size(step))
