"""Train one run in its directory, resuming from what is there: `fit(run, folder)`.

`dsv2.storage.rundir` describes the contents of a run directory.
"""

import contextlib
import json
import math
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import lightning as L
import pandas as pd
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dsv2.config import ConfigError, plain
from dsv2.data.source import Source, repetition_warning
from dsv2.kernels.choice import KERNELS, using
from dsv2.printing import complain, described, warn
from dsv2.storage import checkpoints
from dsv2.storage.files import sweep, write_json, write_text
from dsv2.storage.locks import Busy, hold
from dsv2.storage.rundir import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    LOCK,
    LOGS,
    METRICS,
    RESULT,
    ROUTING,
    SNAPSHOTS,
    finished,
    read_result,
    require_unchanged,
    write_result,
)
from dsv2.storage.space import DiskFull, naming_full_disk
from dsv2.storage.values import parse_yaml
from dsv2.training import sinks
from dsv2.training.callbacks.checkpoint import AtomicCheckpointIO, Checkpointer
from dsv2.training.callbacks.progress import ProgressBar
from dsv2.training.callbacks.recorder import Recorder
from dsv2.training.callbacks.snapshots import Snapshots, snapped
from dsv2.training.machine import best_kernels, provenance, require_accelerator, require_kernels
from dsv2.training.module import Diverged, Module
from dsv2.training.processes import Group, PeerLost, is_loss_of_peer, joined
from dsv2.training.run import Run, stored_name, with_kernels
from dsv2.training.start import anchored, begin, can_resume, open_data
from dsv2.training.strategy import MeshStrategy


class Interrupted(RuntimeError):
    """Training was stopped by SIGTERM before its last step; it resumes from the last checkpoint."""


def fit(run: Run.Config, folder: Path, *, module: Callable[[Run.Config], Module] | None = None) -> dict[str, Any]:
    """Train to the end and return the contents of `result.json`; a finished run is not trained again.

    `module`, a subclass of `Module`, replaces that of the run's objective. It is not part of the fingerprint, so such
    runs need folders of their own. With a `mesh` of several processes, each of them calls this and the first one
    writes. Raises ConfigError for missing devices, Busy if another process trains the run, Diverged for a non-finite
    loss, Interrupted or KeyboardInterrupt when asked to stop, PeerLost if another process of the mesh ended, DiskFull,
    and passes on any other error. Only Diverged, PeerLost and other errors are failures, recorded in `result.json`; the
    last good checkpoint is always kept.
    """
    with naming_full_disk(folder), joined(run) as group:

        def done() -> dict[str, Any] | None:
            return cast("dict[str, Any] | None", group.agree(finished(folder) if group.first else None))

        if (before := done()) is not None:
            return before
        require_accelerator(run.trainer.accelerator)
        require_kernels(run.trainer.kernels)
        module = module or (Module if run.objective is None else run.objective.module)
        with _held(folder, group):
            if (meanwhile := done()) is not None:  # another process trained it and has just let go
                return meanwhile
            run = with_kernels(run, cast(str, group.agree(_kernels(run, folder) if group.first else None)))
            if group.first:
                _fit(run, folder, module, group, folder)
            else:
                with tempfile.TemporaryDirectory() as scratch:
                    _fit(_silent(run), Path(scratch), module, group, folder)
        return cast(dict[str, Any], group.agree(read_result(folder) if group.first else None))


@contextlib.contextmanager
def _held(folder: Path, group: Group) -> Iterator[None]:
    """Hold the lock of a run directory. Raises Busy, in all processes of the run, if another one holds it."""
    with contextlib.ExitStack() as stack:
        met = None
        if group.first:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(hold(folder / LOCK, "this run"))
            except Busy as busy:
                met = busy.meeting
        if (met := group.agree(met)) is not None:
            raise Busy(folder, met)
        yield


def _kernels(run: Run.Config, folder: Path) -> str:
    """Return the kernels to train with: where `auto` leaves the choice, those of the checkpoint to resume from.

    Raises ConfigError if others are asked for, since the two halves of the run would not belong together.
    """
    asked = run.trainer.kernels
    if not any((folder / CHECKPOINTS).glob("*")):
        return best_kernels(run.trainer.accelerator) if asked == "auto" else asked
    begun = _begun_with(folder / CONFIG)
    if asked not in ("auto", begun):
        valid = f"auto or {begun}, with which the run in {folder} was begun; delete that folder to begin anew"
        raise ConfigError("trainer.kernels", asked, valid)
    require_kernels(begun)
    return begun


def _begun_with(config: Path) -> str:
    """Return the kernels in a stored config; older ones, and damaged ones, are of plain torch."""
    try:
        stored = parse_yaml(config.read_text())["trainer"].get("kernels", "torch")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "torch"
    return stored if stored in KERNELS else "torch"


def _silent(run: Run.Config) -> Run.Config:
    """Disable progress bar and W&B, for a process whose output is discarded."""
    wandb = replace(run.logger.wandb, mode="disabled")
    return replace(run, trainer=replace(run.trainer, progress=False), logger=replace(run.logger, wandb=wandb))


def _fit(run: Run.Config, folder: Path, module: Callable[[Run.Config], Module], group: Group, shared: Path) -> None:
    """Train in `folder`, starting from the newest checkpoint in `shared`."""
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    for directory in (folder, folder / CHECKPOINTS):
        sweep(directory)
    write_text(folder / CONFIG, yaml.safe_dump(plain(anchored(run)), sort_keys=False))
    started, on_interrupt = time.time(), signal.getsignal(signal.SIGINT)
    try:
        with naming_full_disk(folder), using(run.trainer.kernels):
            result = _train(run, folder, module(run), group, shared)
    except (Interrupted, KeyboardInterrupt, DiskFull, Busy):  # Busy: of another run that prepares the same data
        raise
    except SIGTERMException:
        raise Interrupted("stopped by SIGTERM") from None
    except SystemExit:  # Lightning turns Ctrl-C into this, after disabling the signal for good
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None
    except BaseException as error:
        cause = error
        if isinstance(error, RuntimeError) and is_loss_of_peer(error):
            cause = PeerLost(f"lost contact with another process of the run; {described(error)}")
        with contextlib.suppress(OSError):  # the original error still reaches the caller
            record_failure(run, folder, cause, started)
        if cause is not error:
            raise cause from error
        raise
    write_result(folder, _header(run, folder, "finished", started) | result)


def record_failure(run: Run.Config, folder: Path, error: BaseException, started: float) -> None:
    """Write the `result.json` of a run that ended with `error`; `started` is in seconds since 1970."""
    status = "diverged" if isinstance(error, Diverged) else "failed"
    text = str(error) if status == "diverged" else f"{type(error).__name__}: {error}"
    failure = {"error": text, "traceback": "".join(traceback.format_exception(error))}
    write_result(folder, _header(run, folder, status, started) | failure)


def _header(run: Run.Config, folder: Path, status: str, started: float) -> dict[str, Any]:
    return {
        "status": status,
        "study": run.study,
        "arm": run.arm,
        "seed": run.seed,
        "probe": run.probe,
        "fingerprint": stored_name(run, folder),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _train(run: Run.Config, folder: Path, module: Module, group: Group, shared: Path) -> dict[str, Any]:
    settings = run.trainer
    checkpoint = group.agree(_resumable(run, shared) if group.first else None)
    start = begin(run, module.model, folder, resumed=None if checkpoint is None else shared)
    source = open_data(run, start)
    _keep_data(source, folder)
    module.begin(source, resumed=checkpoint is not None)
    if group.mesh is not None:
        module.join(group.mesh)
    batches = module.batches
    if group.first and run.objective is None:
        if (overview := source.overview(batches.total_tokens)) is not None:
            complain(overview)
        if (warning := repetition_warning(source, batches.total_tokens)) is not None:
            warn(warning)
    recorder = Recorder(module, source, folder)
    (folder / RESULT).unlink(missing_ok=True)  # of an earlier attempt
    trainer = L.Trainer(
        accelerator=settings.accelerator,
        devices=group.size,
        strategy="auto" if group.mesh is None else MeshStrategy(group.mesh),
        max_steps=batches.num_steps,
        max_epochs=-1,
        default_root_dir=folder,
        logger=sinks.build(run, folder, stored_name(run, folder)),
        callbacks=[
            *([Snapshots(run, recorder.validation, folder, keep=group.first)] if run.model.moe is not None else []),
            recorder,
            *([ProgressBar(batches)] if settings.progress else []),
            Checkpointer(folder / CHECKPOINTS, settings.checkpoint_every, batches.num_steps),
        ],
        plugins=[AtomicCheckpointIO(), group.environment()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    if run.trainer.tokens:
        trainer.fit(module, datamodule=module.stream(source), ckpt_path=checkpoint)
    else:
        _evaluate(trainer, module, recorder, folder)
    if trainer.global_step < batches.num_steps:
        raise Interrupted(f"stopped after step {trainer.global_step} of {batches.num_steps}")
    recorder.flush()
    metrics = recorder.final()
    if not math.isfinite(metrics["val/loss"]):
        raise Diverged(f"the validation loss became {metrics['val/loss']} in the last step, {batches.num_steps}")
    if recorder.failed and group.first:
        warn(f"{folder}: {'; '.join(f'{task} failed: {why}' for task, why in recorder.failed.items())}")
    return {
        "metrics": metrics,
        **({"failed_benchmarks": recorder.failed} if recorder.failed else {}),
        "tokens": batches.total_tokens,
        "steps": batches.num_steps,
        "seconds": recorder.seconds,
        "data": source.identity,
        "provenance": provenance(trainer.strategy.root_device)  # by now the module is back on the CPU
        | ({} if start is None else start.provenance()),
    }


def _evaluate(trainer: L.Trainer, module: Module, recorder: Recorder, folder: Path) -> None:
    """Do what is done at the last step of a run that has none: validate, log, and keep the weights."""
    module.to(trainer.strategy.root_device)
    recorder.log_final(trainer, module)
    weights = {name: weight.cpu() for name, weight in module.state_dict().items()}
    checkpoints.save({"global_step": 0, "state_dict": weights}, folder / CHECKPOINTS / checkpoints.name_of(0))
    for logger in trainer.loggers:
        logger.finalize("success")


def _keep_data(source: Source, folder: Path) -> None:
    """Write what makes the run directory self-contained: the tokenizer and the identity of the data."""
    write_json(folder / DATA, source.record())
    if source.tokenizer is not None:
        source.tokenizer.write_to(folder)


def _resumable(run: Run.Config, folder: Path) -> Path | None:
    """Return the newest valid checkpoint if the logs up to its step are complete; else delete the logs, return None.

    Resuming over logs with gaps would leave a result whose rows do not match the training.
    """
    checkpoint = checkpoints.latest(folder / CHECKPOINTS) if run.trainer.tokens else None  # nothing was trained
    metrics, routing = folder / METRICS, folder / ROUTING
    if checkpoint is not None:
        step, every = checkpoints.step_of(checkpoint), run.trainer.log_every
        logged = sorted({*range(every, step + 1, every), *([step] if step == run.trainer.batches().num_steps else [])})
        try:
            require_unchanged(folder, LOGS)
            lines = metrics.read_text().splitlines(keepends=True)[: len(logged)]
            steps = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
            routed = sorted(pd.read_parquet(routing)["step"].unique()) if run.model.moe is not None else logged
            snapshots_whole = run.model.moe is None or snapped(folder, run, step)
            if steps == logged == routed[: len(logged)] and snapshots_whole and can_resume(run, folder):
                write_text(metrics, "".join(lines))  # later steps are trained again; the last line may be incomplete
                return checkpoint
        except (OSError, ValueError, KeyError, TypeError):
            pass
        warn(f"the logs in {folder} are damaged; training restarts from step 0")
    for log in (metrics, routing, folder / SNAPSHOTS):
        log.unlink(missing_ok=True)
    return None
