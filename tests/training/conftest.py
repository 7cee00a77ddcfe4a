"""Quiet training on one thread, and runs that crash."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning as L
import pytest
import torch

from dsv2.training import machine
from dsv2.training.callbacks.recorder import Recorder


@pytest.fixture(autouse=True)
def quietly() -> None:
    """Train as the commands do, so that what is said is the project's own."""
    machine.prepare()
    torch.set_num_threads(1)


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with crashing(step)`: a run within raises OSError once that step is logged, before it is saved."""
    inner = Recorder.on_train_batch_end

    @contextmanager
    def crashing(step: int) -> Iterator[None]:
        def crash(self: Recorder, trainer: L.Trainer, *arguments: Any) -> None:
            inner(self, trainer, *arguments)
            if trainer.global_step == step:
                raise OSError("the machine went away")

        with monkeypatch.context() as broken:
            broken.setattr(Recorder, "on_train_batch_end", crash)
            with pytest.raises(OSError, match="the machine went away"):
                yield

    return crashing
