"""Metrics and routing of a run, averaged over the steps since the last logged one.

`metrics.jsonl` has one object per logged step, `routing.parquet` one row per logged step, layer and expert. Both are
truncated to the checkpoint's step when a run resumes, so that a killed run ends with the same rows as any other.
"""

import json
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import pandas as pd
import torch
from torch import Tensor

from dsv2.accounting.account import account
from dsv2.data.packing import PackedText
from dsv2.data.source import Source
from dsv2.evaluation.benchmarks import TextBenchmarks
from dsv2.evaluation.deployment import measure_deployment
from dsv2.evaluation.exams import Exams
from dsv2.evaluation.following import Following
from dsv2.evaluation.needle import NeedleGrid
from dsv2.evaluation.positions import LossByPosition
from dsv2.evaluation.validation import evaluate, loss_at_capacity
from dsv2.routing.measures import Counts, Measures, count, mean_measures, measure, overflow
from dsv2.storage.files import replacing, sync, write_text
from dsv2.storage.rundir import METRICS, NEEDLES, ROUTING
from dsv2.training.machine import peak_flops
from dsv2.training.module import Module, Step
from dsv2.training.processes import total
from dsv2.training.sinks import WandbSink

LOSSES = (
    "train/loss",
    "train/ce",
    "train/balance_expert",
    "train/balance_device",
    "train/balance_comm",
    "train/z_loss",
)


class Recorder(L.Callback):
    """Logs every `log_every` steps, validates every `validate_every`; both, and the benchmarks, at the last step."""

    def __init__(self, module: Module, source: Source, folder: Path) -> None:
        run = module.config
        self.run, self.source, self.folder = run, source, folder
        self.validation = source.validation()
        # Built now, so that too small a corpus fails before training.
        self.benchmarks: TextBenchmarks | LossByPosition | NeedleGrid | Following | Exams | None = None
        if run.benchmarks is not None:
            # The config refuses benchmarks of other data.
            self.benchmarks = run.benchmarks.build(cast(Any, source))
        self.num_steps = module.batches.num_steps
        self.flops_per_token = account(run.model, context=run.trainer.sequence_length).flops_per_token
        self.seconds = 0.0  # of training so far, over all attempts, without validation
        self.last: dict[str, float] = {}  # latest value of every metric
        self.failed: dict[str, str] = {}  # benchmarks that failed, and why
        self.routing: list[pd.DataFrame] = []
        self._reset()

    def _reset(self) -> None:
        self.losses: Tensor | None = None
        self.counts: list[Counts] = []
        self.measures: dict[str, list[Tensor]] = {}
        self.steps, self.tokens, self.since = 0, 0, time.perf_counter()
        self.sent = 0  # bytes, by this process

    # ---- state of a resumed run ----

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "last": self.last, "failed": self.failed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.last = state_dict["seconds"], state_dict["last"]
        self.failed = state_dict.get("failed", {})  # older checkpoints have none

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        keep_until(self.folder, trainer.global_step)
        if (path := self.folder / ROUTING).is_file():
            self.routing = [pd.read_parquet(path)]
        self._reset()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.flush()

    def flush(self) -> None:
        """Write everything logged so far durably, before the checkpoint that includes it."""
        if (path := self.folder / METRICS).is_file():
            sync(path)
        if self.routing:
            self.routing = [pd.concat(self.routing, ignore_index=True)]
            with replacing(self.folder / ROUTING) as scratch:
                self.routing[0].to_parquet(scratch, index=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, WandbSink):
                logger.summarise(self.final(), pd.concat(self.routing) if self.routing else None)

    def final(self) -> dict[str, float]:
        """Return the latest value of every metric; `routing/*`, except the drop rate, is of the validation set."""
        dropped = {name: value for name, value in self.last.items() if name == "routing/drop_rate"}
        validated = {name: value for name, value in self.last.items() if name.startswith("val/routing/")}
        others = {name: value for name, value in self.last.items() if name not in validated}
        return others | {name.removeprefix("val/"): value for name, value in validated.items()} | dropped

    # ---- recording ----

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Module)
        self._add(outputs["step"], pl_module, trainer.world_size)
        step, settings = trainer.global_step, self.run.trainer
        final = step == self.num_steps
        if not final and step % settings.log_every:
            return
        row = self._window(pl_module, trainer)
        if final or step % settings.validate_every == 0:
            row |= self._validate(pl_module, final=final)
        self._record_routing(step)
        self._log(row, trainer, pl_module)
        self._reset()

    def log_final(self, trainer: L.Trainer, module: Module) -> None:
        """Log what is measured at the last step, for a run without any, and end."""
        self._log(self._validate(module, final=True), trainer, module)
        self.on_train_end(trainer, module)

    def _log(self, row: dict[str, float], trainer: L.Trainer, module: Module) -> None:
        self.last |= row
        step = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics(row | {"tokens": module.batches.tokens_before(step)}, step)

    def _validate(self, module: Module, *, final: bool) -> dict[str, float]:
        """Measure on the validation set and, at the last step, on the benchmarks, with the model as it is deployed."""
        if (own := module.validated()) is not None:
            return own
        deployment, size = self.run.deployment, self.run.trainer.batch.size
        model = module.model if deployment is None else deployment.of(module.model)
        row = evaluate(
            model,
            self.validation,
            batch_size=size,
            token_bytes=self.source.token_bytes,
            domains=self.source.domains,
            whole_answers=self.source.whole_answers,
        )
        if final and self.benchmarks is not None:
            measured = self.benchmarks.run(model, batch_tokens=size * self.run.trainer.sequence_length)
            self.failed = measured.failed
            row |= measured.scores
            if measured.needles is not None:
                with replacing(self.folder / NEEDLES) as scratch:
                    measured.needles.to_parquet(scratch, index=False)
        if final and deployment is not None and isinstance(self.source, PackedText):
            row |= measure_deployment(module.model, deployment, self.validation.inputs.to(module.device))
        moe = self.run.model.moe
        if final and deployment is None and moe is not None and moe.drops_by_device and moe.num_devices > 1:
            row["val/loss_at_capacity"] = loss_at_capacity(model, self.validation, batch_size=size)
        return row

    def _add(self, step: Step, module: Module, num_processes: int) -> None:
        losses = torch.stack(step.losses)
        self.losses = losses if self.losses is None else self.losses + losses
        self.steps, self.tokens = self.steps + 1, self.tokens + step.tokens * num_processes
        self.sent += module.sent
        for name, value in step.measures.items():
            self.measures.setdefault(name, []).append(value)
        if module.moe is not None:
            num_devices = module.moe.num_devices
            new = [_of_all(count(routing, num_devices=num_devices), num_devices) for routing in step.routings]
            self.counts = [old + more for old, more in zip(self.counts, new, strict=True)] if self.counts else new

    def _window(self, module: Module, trainer: L.Trainer) -> dict[str, float]:
        assert self.losses is not None
        seconds = time.perf_counter() - self.since
        self.seconds += seconds
        row = dict(zip(LOSSES, (self.losses / self.steps).tolist(), strict=True))
        last = trainer.global_step - 1  # the optimiser already has the next step's learning rate
        row["train/lr"] = self.run.optim.highest_lr * self.run.optim.schedule.factor(last, module.batches)
        row["train/grad_norm"] = module.grad_norm.item()
        row |= {name: torch.stack(values).mean().item() for name, values in self.measures.items()}
        row["perf/tokens_per_s"] = self.tokens / seconds
        if self.run.mesh.ep > 1:
            sent = total(torch.tensor(self.sent, device=module.device))
            row["perf/sent_bytes_per_token"] = sent.item() / self.tokens
        peak = peak_flops(module.device, self.run.trainer.precision)
        row["perf/mfu"] = self.tokens / seconds * self.flops_per_token / peak
        return row | mean_measures([measure(counts) for counts in self.counts])

    def _record_routing(self, step: int) -> None:
        layers = self.run.model.moe_layers if self.counts else ()
        self.routing += [routing_rows(step, *pair) for pair in zip(layers, self.counts, strict=True)]


def _of_all(counts: Counts, num_devices: int) -> Counts:
    """Sum the counts over all processes, to those of the step's whole batch."""
    summed = Counts(*map(total, counts))
    return summed._replace(overflow=overflow(summed.load, num_devices))


def routing_rows(step: int, layer: int, counts: Counts) -> pd.DataFrame:
    """Return one row per expert; the layer's measures are repeated on each."""
    num_experts, num_devices = counts.load.numel(), counts.received.numel()
    columns = {
        "step": step,
        "layer": layer,
        "expert": range(num_experts),
        "device": [expert // (num_experts // num_devices) for expert in range(num_experts)],
        "load": counts.load.tolist(),
        "dropped": counts.dropped.tolist(),
    }
    return pd.DataFrame(columns | dict(zip(Measures._fields, measure(counts), strict=True)))


def keep_until(folder: Path, step: int) -> None:
    """Truncate `metrics.jsonl` and `routing.parquet` to what was logged up to `step`."""
    if (path := folder / METRICS).is_file():
        kept = [line for line in path.read_text().splitlines(keepends=True) if _logged_by(line, step)]
        write_text(path, "".join(kept))
    if (path := folder / ROUTING).is_file():
        rows = pd.read_parquet(path)
        with replacing(path) as scratch:
            rows[rows["step"] <= step].to_parquet(scratch, index=False)


def _logged_by(line: str, step: int) -> bool:
    """Whether the line is complete and was logged at or before `step`."""
    return line.endswith("\n") and json.loads(line)["step"] <= step
