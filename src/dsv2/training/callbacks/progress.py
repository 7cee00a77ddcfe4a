"""A progress bar in tokens, with rate and remaining time."""

import sys
from typing import Any

import lightning as L
from tqdm.auto import tqdm

from dsv2.training.schedule import BatchRamp


class ProgressBar(L.Callback):
    """One bar on stderr for the whole run; a resumed run continues it."""

    def __init__(self, batches: BatchRamp) -> None:
        self.batches = batches
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = self.batches.tokens_before(trainer.global_step)
        self.bar = tqdm(
            total=self.batches.total_tokens, initial=done, unit="tok", unit_scale=True, file=sys.stderr, mininterval=0.5
        )

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        assert self.bar is not None
        self.bar.update(self.batches.tokens_before(trainer.global_step) - self.bar.n)
        if trainer.global_step % 10 == 0:
            self.bar.set_postfix(loss=f"{outputs['step'].losses.total.item():.3f}", refresh=False)

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
