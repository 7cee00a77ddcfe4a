"""The Lightning loggers of a run: one writes `metrics.jsonl`, the other sends to Weights & Biases."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger

from dsv2.config import plain
from dsv2.printing import described, warn
from dsv2.storage.files import append
from dsv2.storage.rundir import METRICS
from dsv2.training.run import Run


class JsonlSink(Logger):
    """Appends one JSON object per logged step: all of it or, on a full disk, nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Do nothing: the run directory has `config.yaml`."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        append(self.path, json.dumps({"step": step} | metrics) + "\n")


class WandbSink(WandbLogger):
    """W&B logger: group = study, job type = arm, id = fingerprint, so that a resumed run continues.

    What a killed run has sent cannot be taken back, so a resumed one starts a new offline folder with all rows up to
    its checkpoint, and deletes the older ones. Online, W&B drops the rows that it has: their steps are not new.
    """

    def __init__(self, run: Run.Config, folder: Path, fingerprint: str) -> None:
        import wandb

        settings = run.logger.wandb
        for former in (folder / "wandb").glob(f"offline-run-*-{fingerprint}"):
            shutil.rmtree(former)
        # A parent's W&B service, known from the environment, would outlive this process and refuse the resumed run.
        os.environ.pop(wandb.env.SERVICE, None)
        started = wandb.init(
            project=settings.project,
            name=f"{run.arm or 'run'}-s{run.seed}",
            id=fingerprint,
            group=run.study,
            job_type=run.arm,
            tags=[tag for tag in (run.scale, run.probe) if tag is not None],
            dir=folder,
            mode=settings.mode,
            resume="allow" if settings.mode == "online" else None,
            config=flatten(plain(run)),
            settings=wandb.Settings(
                silent=True,
                console="off",
                # The run directory already holds the provenance; collecting it again takes 0.1 s per trial.
                x_disable_stats=True,
                x_disable_meta=True,
                x_save_requirements=False,
                disable_git=True,
                disable_code=True,
            ),
        )
        super().__init__(experiment=started)
        for line in (folder / METRICS).read_text().splitlines() if (folder / METRICS).is_file() else []:
            row = json.loads(line)
            self.log_metrics(row, row.pop("step"))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step, commit=True)

    def summarise(self, metrics: dict[str, float], routing: pd.DataFrame | None) -> None:
        """Set the run's summary, which W&B's tables and sweeps compare, and log the final load.

        The load of all layers and experts is one table, with a histogram and a bar chart over devices. If W&B fails, it
        is reported on stderr: the run directory has all of this.
        """
        for send in (lambda: self.experiment.summary.update(metrics), lambda: self._log_load(routing)):
            try:
                send()
            except Exception as error:  # of W&B, its files or the network
                warn(f"W&B lacks a part of this run; {described(error)}")

    def _log_load(self, routing: pd.DataFrame | None) -> None:
        if routing is not None:
            import wandb

            last = routing[routing["step"] == routing["step"].max()][["layer", "expert", "device", "load", "dropped"]]
            share = last["load"] / last.groupby("layer")["load"].transform("mean")
            devices = last.assign(share=share).groupby("device", as_index=False)["share"].mean()
            chart = wandb.plot.bar(wandb.Table(dataframe=devices), "device", "share", title="device load / mean")
            self.experiment.log(
                {
                    "routing/load": wandb.Table(dataframe=last),
                    "routing/load_histogram": wandb.Histogram(share.tolist()),
                    "routing/device_load": chart,
                }
            )

    def finalize(self, status: str) -> None:
        self.experiment.finish(exit_code=0 if status == "success" else 1)


def build(run: Run.Config, folder: Path, fingerprint: str) -> list[Logger]:
    """Build the loggers of a run, whose `metrics.jsonl` ends at the checkpoint from which it resumes."""
    sinks: list[Logger] = [JsonlSink(folder / METRICS)]
    if run.logger.wandb.mode != "disabled":
        sinks.append(WandbSink(run, folder, fingerprint))
    return sinks


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
