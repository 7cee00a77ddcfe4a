"""What a run directory holds, and where run directories lie.

config.yaml                 the typed config of the run
data.json                   identity of its corpus, tokenizer and held-out documents; where the prepared corpus is
tokenizer.json              its tokenizer, where its data are text
metrics.jsonl               one object per logged step
routing.parquet             one row per logged step, MoE layer and expert
routing_snapshots.parquet   the experts of a fixed probe over training
checkpoints/                the newest checkpoints and their manifest
result.json                 written last: how the run ended
model.safetensors           of an imported model, in place of checkpoints
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

CONFIG = "config.yaml"
DATA = "data.json"
METRICS = "metrics.jsonl"
ROUTING = "routing.parquet"
SNAPSHOTS = "routing_snapshots.parquet"
CHECKPOINTS = "checkpoints"
RESULT = "result.json"
WEIGHTS = "model.safetensors"
FINGERPRINT = re.compile(r"[0-9a-f]{4,16}")  # or its first digits


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


# ---- runs by name ----------------------------------------------------------------------------------------------------


def find_run(name: str | Path) -> Path:
    """Return the run directory that `name` means: a path, `sweep/scale/arm/seed`, or the first digits of a fingerprint.

    Names are looked up under `runs_root()`. Of a trial on a probe the name goes on with the probe, as in
    `attention_moe/tiny/small_mla/0/recall`. ValueError where there is no such run, or more than one.
    """
    text, root = str(name), runs_root()
    if text and Path(name).is_dir():
        return Path(name)
    folders = _named(root, *text.split("/")) if text.count("/") in (3, 4) else []
    if FINGERPRINT.fullmatch(text):
        folders = sorted({*root.glob(f"*/{text}*/{CONFIG}"), *root.glob(f"*/*/trials/{text}*/{CONFIG}")})
        folders = [path.parent for path in folders]
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise ValueError(f"RUN={text!r}: means {len(folders)} runs; name one, {', '.join(map(str, folders[:4]))}")
    valid = f"a run directory, sweep/scale/arm/seed, or the first digits of a fingerprint under {root}"
    raise ValueError(f"RUN={text!r}: {valid}{_instead(root, text)}")


def _named(root: Path, sweep: str, scale: str, arm: str, seed: str, probe: str | None = None) -> list[Path]:
    """The trial of a study that was asked for last under this arm, seed and probe."""
    for known in _trials(root / sweep / scale):
        if (known[0], str(known[1]), known[2]) == (arm, seed, probe):
            return [folder] if (folder := root / sweep / scale / "trials" / known[3]).is_dir() else []
    return []


def _trials(study: Path) -> list[list[Any]]:
    """[arm, seed, probe, folder] of each trial of a study, out of its `study.json`; none where that is damaged."""
    try:
        trials = json.loads((study / "study.json").read_text())["trials"]
        return [[arm, seed, probe, folder] for arm, seed, probe, folder in trials]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _instead(root: Path, text: str) -> str:
    """The arms and seeds that a study has, where one is named."""
    trials = _trials(root / Path(*text.split("/")[:2])) if text.count("/") > 1 else []
    arms, seeds = (dict.fromkeys(str(trial[place]) for trial in trials) for place in (0, 1))
    return f"; arms there are {', '.join(arms)}, seeds {', '.join(seeds)}" if trials else ""
