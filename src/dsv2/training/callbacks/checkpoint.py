"""Checkpointing, including the random-number states that Lightning's checkpoints leave out."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from dsv2.storage import checkpoints
from dsv2.training.module import Diverged
from dsv2.training.processes import total


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint I/O plugin, backed by `dsv2.storage.checkpoints`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        checkpoints.save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return checkpoints.load(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpointer(Checkpoint):
    """Saves every `every` steps and at the last one, through `AtomicCheckpointIO`. Runs after all other callbacks.

    Raises Diverged if a weight is not finite, so that bad weights never replace good ones.
    """

    def __init__(self, folder: Path, every: int, num_steps: int) -> None:
        self.folder, self.every, self.num_steps = folder, every, num_steps
        self.restored: dict[str, Any] | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every == 0 or step == self.num_steps:
            bad = [name for name, weight in pl_module.named_parameters() if not weight.isfinite().all()]
            number = torch.tensor(len(bad), device=next(pl_module.parameters()).device)
            if total(number):  # in all processes, so that none waits for one that stopped
                name = bad[0] if bad else "a weight of another process"
                raise Diverged(f"{name} stopped being finite by step {step}")
            trainer.save_checkpoint(self.folder / checkpoints.name_of(step))

    def state_dict(self) -> dict[str, Any]:
        generators = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": _numpy_state()}
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.get_rng_state_all()
        return generators

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict

    def on_train_batch_start(self, *_: Any) -> None:
        """Restore the generators at the first resumed batch, since building iterators draws from them."""
        if self.restored is None:
            return
        state, self.restored = self.restored, None
        torch.set_rng_state(state["torch"].cpu())
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))  # noqa: NPY002
        if "cuda" in state:
            torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])


def _numpy_state() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return (name, np.asarray(keys).tolist(), *rest)  # plain values, so that the checkpoint loads with weights_only=True
