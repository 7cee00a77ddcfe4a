"""The Lightning loggers behind `logger`: one writes `metrics.jsonl`, the other feeds Weights & Biases."""

import json
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from dsv2.config import plain
from dsv2.run import Run


class Jsonl(Logger):
    """Appends one JSON object a logged step, flushed at once."""

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
        """The run directory has its `config.yaml`."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | metrics) + "\n")


def build(run: Run.Config, folder: Path, fingerprint: str) -> list[Logger]:
    """The loggers of a run. W&B: group = study, job type = arm, id = fingerprint, so that a resumed run continues."""
    sinks: list[Logger] = [Jsonl(folder / "metrics.jsonl")]
    settings = run.logger.wandb
    if settings.mode != "disabled":
        os.environ.setdefault("WANDB_SILENT", "true")
        sinks.append(
            WandbLogger(
                name=f"{run.arm or 'run'}-s{run.seed}",
                project=settings.project,
                id=fingerprint,
                group=run.study,
                job_type=run.arm,
                save_dir=folder,
                offline=settings.mode == "offline",
                resume="allow",
                config=flatten(plain(run)),
            )
        )
    return sinks


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
