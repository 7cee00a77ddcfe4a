"""Snapshots of the routing of a fixed validation probe over training: `routing_snapshots.parquet`.

One row per snapshot, MoE layer, token and slot (the K chosen experts, highest affinity first). A resumed run keeps the
rows up to its checkpoint's step, so that a killed run ends with the same rows as any other.

B sequences, T tokens, K experts per token.
"""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch

from dsv2.data.source import Batch
from dsv2.models.moe.router import Routing
from dsv2.models.transformer import evaluating
from dsv2.storage.files import replacing
from dsv2.storage.rundir import SNAPSHOTS
from dsv2.training.module import Module
from dsv2.training.run import Run

PROBE_TOKENS = 512  # at most; their forward pass costs well under 1% of the steps between two validations


class Snapshots(L.Callback):
    """Routes the probe before the first step, at every validation and after the last step.

    Processes that hold experts between them all route, and those that are not to `keep` it write nothing.
    """

    def __init__(self, run: Run.Config, validation: Batch, folder: Path, *, keep: bool = True) -> None:
        self.keep = keep
        self.every, self.num_steps = run.trainer.validate_every, run.trainer.batches().num_steps
        self.path, self.probe = folder / SNAPSHOTS, probe(validation)
        self.rows: list[pd.DataFrame] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self.rows = [self._snapshot(0, pl_module)]
        elif self.keep:
            rows = pd.read_parquet(self.path)
            self.rows = [rows[rows["step"] <= trainer.global_step]]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step % self.every == 0 or step == self.num_steps:
            self.rows.append(self._snapshot(step, pl_module))

    def on_save_checkpoint(self, *_: Any) -> None:
        """Write the rows durably, before the checkpoint that includes their step."""
        if not self.keep:
            return
        self.rows = [pd.concat(self.rows, ignore_index=True)]
        with replacing(self.path) as scratch:
            self.rows[0].to_parquet(scratch, index=False, compression="zstd")

    @torch.no_grad()
    def _snapshot(self, step: int, module: L.LightningModule) -> pd.DataFrame:
        assert isinstance(module, Module)
        model = module.model
        with module.whole(), evaluating(model):
            routings = model(self.probe.inputs.to(module.device), positions=self.probe.positions).routings
        rows = [snapshot_rows(step, *pair) for pair in zip(model.config.moe_layers, routings, strict=True)]
        return pd.concat(rows)


def probe(validation: Batch) -> Batch:
    """Pick evenly spaced validation sequences, so that all domains occur, with at most `PROBE_TOKENS` tokens."""
    sequences, length = validation.inputs[:, :PROBE_TOKENS].shape
    count = min(max(PROBE_TOKENS // length, 1), sequences)
    chosen = torch.arange(count) * sequences // count
    return validation.map(lambda field: field[chosen, :length])


def snapshot_rows(step: int, layer: int, routing: Routing) -> pd.DataFrame:
    """Return one row per token of the flattened probe and slot, in compact integer types."""
    experts = routing.experts.flatten(0, 1).cpu().numpy()  # (B T, K)
    tokens, slots = np.indices(experts.shape)
    return pd.DataFrame(
        {
            "step": np.full(experts.size, step, dtype=np.int32),
            "layer": np.full(experts.size, layer, dtype=np.int16),
            "token": tokens.ravel().astype(np.int16),
            "slot": slots.ravel().astype(np.int16),
            "expert": experts.ravel().astype(np.int16),
        }
    )


def snapped(folder: Path, run: Run.Config, step: int) -> bool:
    """Whether the snapshots of a run are complete up to `step`. Raises OSError or ValueError for an unreadable file."""
    every, last = run.trainer.validate_every, run.trainer.batches().num_steps
    expected = sorted({*range(0, step + 1, every), *([step] if step == last else [])})
    return sorted(pd.read_parquet(folder / SNAPSHOTS)["step"].unique())[: len(expected)] == expected
