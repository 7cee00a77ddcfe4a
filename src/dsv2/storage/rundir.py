"""What a run directory holds, and where run directories lie.

config.yaml                 the typed config of the run
metrics.jsonl               one object per logged step
routing.parquet             one row per logged step, MoE layer and expert
routing_snapshots.parquet   the experts of a fixed probe over training
checkpoints/                the newest checkpoints and their manifest
result.json                 written last: how the run ended
model.safetensors           of an imported model, in place of checkpoints
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
ROUTING = "routing.parquet"
SNAPSHOTS = "routing_snapshots.parquet"
CHECKPOINTS = "checkpoints"
RESULT = "result.json"
WEIGHTS = "model.safetensors"


def runs_root() -> Path:
    """Return `runs/` in the current directory, or what DSV2_RUNS names."""
    return Path(os.environ.get("DSV2_RUNS", "runs"))


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that finished, or None; nothing but a complete `result.json` decides."""
    result = read_result(folder)
    return result if result.get("status") == "finished" else None


def read_result(folder: Path) -> dict[str, Any]:
    """What `result.json` says; empty where there is none, and, said on stderr, where it is damaged."""
    path = folder / RESULT
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        result = None
    if not isinstance(result, dict) or not _numbers(result.get("metrics", {})):
        print(f"warning: {path} is damaged; the run counts as unfinished", file=sys.stderr)
        return {}
    return result


def _numbers(metrics: Any) -> bool:
    return isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())
