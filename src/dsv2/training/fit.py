"""Train one run in its directory, resuming whatever is there: `fit(run, folder)`.

A run directory holds `config.yaml`, `metrics.jsonl`, `routing.parquet`, `checkpoints/` and, last, `result.json`.
"""

import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from dsv2.config import plain
from dsv2.data.module import Stream
from dsv2.data.source import repetition_warning
from dsv2.files import sweep, write_json, write_text
from dsv2.run import Run
from dsv2.training import checkpoints, sinks
from dsv2.training.callbacks.checkpoint import AtomicCheckpointIO, Checkpointer
from dsv2.training.callbacks.progress import Progress
from dsv2.training.callbacks.recorder import Recorder
from dsv2.training.module import Diverged, Module
from dsv2.training.provenance import provenance
from dsv2.training.result import RESULT, finished, read_result


class Interrupted(RuntimeError):
    """Training was asked to stop (SIGTERM, Ctrl-C) before its last step; what was saved will be resumed."""


def fit(run: Run.Config, folder: Path) -> dict[str, Any]:
    """Train to the end and return what `result.json` holds; a finished run is not trained again.

    Raises Diverged for a loss that is not finite, Interrupted when asked to stop, and whatever else went wrong; the
    first and the last leave a `result.json` that says so, and the last good checkpoint.
    """
    if (done := finished(folder)) is not None:
        return done
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    sweep(folder)
    write_text(folder / "config.yaml", yaml.safe_dump(plain(run), sort_keys=False))
    started = time.time()
    try:
        result = _train(run, folder)
    except (Interrupted, KeyboardInterrupt):
        raise
    except BaseException as error:
        status = "diverged" if isinstance(error, Diverged) else "failed"
        failure = {"error": str(error), "traceback": traceback.format_exc()}
        write_json(folder / RESULT, _header(run, status, started) | failure)
        raise
    write_json(folder / RESULT, _header(run, "finished", started) | result)
    return read_result(folder)


def _header(run: Run.Config, status: str, started: float) -> dict[str, Any]:
    return {
        "status": status,
        "study": run.study,
        "arm": run.arm,
        "seed": run.seed,
        "fingerprint": run.fingerprint(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _train(run: Run.Config, folder: Path) -> dict[str, Any]:
    settings = run.trainer
    source = run.data.open(
        sequence_length=settings.sequence_length, seed=run.seed, validation_tokens=settings.validation_tokens
    )
    module = Module(run)
    batches = module.batches
    if (warning := repetition_warning(source, batches.total_tokens)) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    recorder = Recorder(module, source, folder)
    trainer = L.Trainer(
        accelerator=settings.accelerator,
        devices=1,
        max_steps=batches.num_steps,
        max_epochs=-1,
        default_root_dir=folder,
        logger=sinks.build(run, folder, run.fingerprint()),
        callbacks=[
            recorder,
            *([Progress(batches)] if settings.progress else []),
            Checkpointer(folder / "checkpoints", settings.checkpoint_every, batches.num_steps),
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    resume = checkpoints.latest(folder / "checkpoints")
    trainer.fit(module, datamodule=Stream(source, batches), ckpt_path=resume)
    if trainer.global_step < batches.num_steps:
        raise Interrupted(f"stopped after step {trainer.global_step} of {batches.num_steps}")
    recorder.flush()
    return {
        "metrics": recorder.final(),
        "tokens": batches.total_tokens,
        "steps": batches.num_steps,
        "seconds": recorder.seconds,
        "data": source.identity,
        "provenance": provenance(module.device),
    }
