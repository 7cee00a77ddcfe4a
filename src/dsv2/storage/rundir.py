"""Contents and location of run directories.

config.yaml                 the typed config of the run
data.json                   identity of corpus, tokenizer and held-out documents; path of the prepared corpus
tokenizer.json              the tokenizer, if the data are text
tokenizer_config.json       its special tokens, if it is that of an imported model
origin.json                 the run whose weights this one started from, if there is one, and their hash
metrics.jsonl               one object per logged step
routing.parquet             one row per logged step, MoE layer and expert
routing_snapshots.parquet   the experts chosen for a fixed probe over training
needles.parquet             one row per question of the needle benchmark and depth, if the run has that
checkpoints/                the newest checkpoints and their manifest
lock                        held while the run is trained; lock.json names the process that holds it
result.json                 written last, by `training/fit.py`: status, metrics, seconds, data, provenance, and hashes
                            of itself and of the files above
model.safetensors           weights of an imported model, in place of checkpoints
"""

import os
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from dsv2.printing import warn_once
from dsv2.storage.paths import require_own_files, within
from dsv2.storage.sealed import Damaged, changed, file_hash, hashes, read_object, read_sealed, write_sealed

CONFIG = "config.yaml"
DATA = "data.json"
METRICS = "metrics.jsonl"
ROUTING = "routing.parquet"
SNAPSHOTS = "routing_snapshots.parquet"
NEEDLES = "needles.parquet"
TOKENIZER = "tokenizer.json"
TOKENIZER_SETTINGS = "tokenizer_config.json"  # as Hugging Face names it
CHAT_TEMPLATE_FILE = "chat_template.jinja"  # of an imported model; takes precedence over that in its settings
ORIGIN = "origin.json"
LOGS = (METRICS, ROUTING, SNAPSHOTS)
FILES = (CONFIG, DATA, TOKENIZER, TOKENIZER_SETTINGS, ORIGIN, *LOGS, NEEDLES)  # of a trained run, as far as it has them
CHECKPOINTS = "checkpoints"
RESULT = "result.json"
LOCK = "lock"  # held by the process that trains here
WEIGHTS = "model.safetensors"
MANIFEST = f"{CHECKPOINTS}/manifest.json"  # lists the checkpoints with their hashes
FINGERPRINT = re.compile(r"[0-9a-f]{4,16}")  # whole or abbreviated


def runs_root() -> Path:
    """Return `runs/` in the current directory, or the directory in DSV2_RUNS. Raises ValueError if it names none."""
    root = os.environ.get("DSV2_RUNS", "runs")
    if not root or root.startswith("~"):  # the current directory, or a folder called ~
        raise ValueError(f"DSV2_RUNS={root!r}: must be the path of a folder; a shell replaces ~ outside of quotes only")
    return Path(root)


def require_in_store(folder: Path) -> None:
    """Raise ValueError if the folder of a run or study, or a link within, leads out of the root of the runs."""
    require_own_files(within(runs_root(), folder), runs_root())


def finished(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run, or None; only a complete `result.json` counts."""
    result = read_result(folder)
    return result if result.get("status") == "finished" else None


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write `result.json`; that of a finished run covers every other file with a hash.

    Checkpoints are covered through their manifest.
    """
    covered = {"files": hashes(folder, (*FILES, MANIFEST))} if result["status"] == "finished" else {}
    write_sealed(folder / RESULT, result | covered)


def read_result(folder: Path) -> dict[str, Any]:
    """Return the contents of `result.json`; empty if it is missing.

    If it or a file that it covers is damaged, warns on stderr and returns the status "damaged" with an error that names
    the file. Results from before files were covered are returned as they are.
    """
    path = folder / RESULT
    try:
        result = read_sealed(path)
        _require_unchanged(folder, result)
        if not _is_result(result):
            raise Damaged(f"{path}: damaged, its metrics are not numbers")
    except FileNotFoundError:
        return {}
    except Damaged as error:
        warn_once(f"{error}; the run counts as unfinished, and its command trains it again")
        return {"status": "damaged", "error": str(error)}
    return result


def require_unchanged(folder: Path, names: Container[str] | None = None) -> None:
    """Raise Damaged if a file of a finished run, of `names` if given, is not as it was when the run finished."""
    try:
        result = read_sealed(folder / RESULT)
    except (FileNotFoundError, Damaged):
        return  # unfinished, or nothing left to compare with
    _require_unchanged(folder, result, names)


def _require_unchanged(folder: Path, result: Mapping[str, Any], names: Container[str] | None = None) -> None:
    files = result.get("files", {})
    if not isinstance(files, dict):
        raise Damaged(f"{folder / RESULT}: damaged, its files are not listed by name")
    wanted = {name: files[name] for name in files if names is None or name in names}
    if not (folder / CHECKPOINTS).exists():  # deleted to save space: the results do not need it
        wanted.pop(MANIFEST, None)
    if wrong := changed(folder, wanted):
        what = "not as it was when the run finished" if wrong[0].exists() else "missing"
        raise Damaged(f"{wrong[0]}: {what}")


def read_data(folder: Path) -> dict[str, Any]:
    """Return the record of a run's data; of a run older than `data.json`, at most the identity in its result.

    Raises ValueError for a damaged one.
    """
    path = folder / DATA
    if not path.is_file():
        identity = read_result(folder).get("data")
        return {"identity": identity} if isinstance(identity, dict) else {}
    record = read_object(path)
    if not isinstance(record.get("identity"), dict) or not isinstance(record.get("prepared", ""), str):
        raise ValueError(f"{path}: damaged, its identity or the path of its prepared corpus")
    return record


def require_own_tokenizer(folder: Path) -> None:
    """Raise ValueError if the tokenizer in a run directory is not the one that the run was trained with."""
    then = read_data(folder).get("identity", {}).get("trained_tokenizer")
    if (path := folder / TOKENIZER).is_file() and then not in (None, file_hash(path)):
        raise ValueError(f"{path}: not the tokenizer that the run was trained with; restore the file")


def _is_result(result: Mapping[str, Any]) -> bool:
    metrics = result.get("metrics", {})
    return isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())
