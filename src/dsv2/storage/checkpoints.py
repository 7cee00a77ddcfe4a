"""Checkpoints that survive a kill while they are written, and whose corruption is detected.

A checkpoint is valid only if `manifest.json`, which is written last, lists it with its checksum. The newest `KEEP` are
kept, so that a damaged file costs a few steps, not the run. A run saves steps in ascending order: checkpoints of later
steps belong to an attempt that could not be resumed, and are deleted once the new attempt saves.
"""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from dsv2.printing import warn_once
from dsv2.storage.files import replacing, write_json
from dsv2.storage.sealed import Damaged, file_hash, read_object

KEEP = 2
MANIFEST = "manifest.json"
UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
NAME = re.compile(r"step-\d{9,18}\.ckpt")


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically and durably, list it with its SHA-256, and delete all but the newest `KEEP`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        with scratch.open("wb") as file:  # by name, PyTorch would not say that the disk is full
            torch.save(checkpoint, file)
        checksum = file_hash(scratch)
    step = int(checkpoint["global_step"])
    listed = {name: entry for name, entry in _manifest(path.parent).items() if step_of(name) < step}
    listed[path.name] = {"step": step, "sha256": checksum}
    newest = sorted(listed, key=step_of)[-KEEP:]
    write_json(path.parent / MANIFEST, {name: listed[name] for name in newest})
    for other in path.parent.glob("step-*.ckpt"):  # including files that a kill left unlisted
        if other.name not in newest:
            other.unlink(missing_ok=True)


def name_of(step: int) -> str:
    return f"step-{step:09d}.ckpt"


def step_of(path: str | Path) -> int:
    """Return the optimiser step after which this checkpoint was saved."""
    return int(Path(path).stem.removeprefix("step-"))


def load(path: Path, map_location: Any | None = None) -> dict[str, Any]:
    """Read a checkpoint written by `save`. Raises ValueError if it holds more than tensors and plain values."""
    require_no_pickles()
    try:
        loaded = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a checkpoint of tensors and plain values ({type(error).__name__})") from None
    if not isinstance(loaded, dict) or not isinstance(loaded.get("state_dict"), dict):
        raise ValueError(f"{path}: not a checkpoint, it has no state_dict")
    return loaded


def require_no_pickles() -> None:
    """Raise ValueError if the environment asks PyTorch to run what files of weights contain."""
    if os.environ.get(UNSAFE, "0").lower() not in ("", "0", "false", "no", "n"):
        raise ValueError(f"{UNSAFE}: files of weights could run code; unset it")


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` with a correct checksum, or None. Warns on stderr of those it skips.

    Read-only, so a run may be saving there.
    """
    listed = _manifest(folder)
    for name in sorted(listed, key=step_of, reverse=True):
        path = folder / name
        if path.is_file() and file_hash(path) == listed[name]["sha256"]:
            return path
        warn_once(f"checkpoint {path} is damaged or missing; falling back to an earlier one")
    return None


def steps(folder: Path) -> list[int]:
    """Return the steps of the valid checkpoints in `folder`, oldest first. Read-only, so a run may be saving there."""
    listed = _manifest(folder)
    valid = [name for name in listed if (path := folder / name).is_file() and file_hash(path) == listed[name]["sha256"]]
    return sorted(map(step_of, valid))


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries by file name; those that make no sense, as after damage, are left out with a warning."""
    path = folder / MANIFEST
    try:
        listed = read_object(path)
    except FileNotFoundError:
        return {}
    except Damaged as error:
        warn_once(f"{error}, so no checkpoint beside it can be trusted")
        return {}
    valid = {name: entry for name, entry in listed.items() if NAME.fullmatch(name) and _is_entry(entry)}
    if len(valid) < len(listed):
        warn_once(f"{path}: damaged, {len(listed) - len(valid)} entries were skipped")
    return valid


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("sha256"), str)
