"""Removing runs from the store, unless something there still names them."""

import csv
import os
import shutil
from pathlib import Path

from dsv2.storage.files import PARTIAL, sync
from dsv2.storage.locks import hold
from dsv2.storage.paths import within
from dsv2.storage.rundir import CONFIG, FINGERPRINT, LOCK, ORIGIN, runs_root
from dsv2.storage.runs import StoredRun, list_runs
from dsv2.storage.sealed import Damaged, read_object


def runs_at(folders: list[Path]) -> list[StoredRun]:
    """Return the runs of the store in these folders, without duplicates. Raises ValueError for any other folder."""
    root = runs_root()
    known = {run.folder.resolve(): run for run in list_runs()}
    found = {}
    for folder in folders:
        if folder.is_symlink() or folder.resolve() not in known:
            valid = f"the folder of a run under {root}, called by its fingerprint and with a {CONFIG}"
            raise ValueError(f"RUN={str(folder)!r}: only runs of the store are removed: {valid}")
        found[folder.resolve()] = known[folder.resolve()]
    return list(found.values())


def named_by(run: StoredRun, runs: list[StoredRun]) -> list[str]:
    """Return what names a run: reports of its study, and those of `runs` that started from its weights."""
    place = run.folder.parents[1]
    reports = sorted((*place.glob("report/trials.csv"), *place.glob("reports/*/trials.csv")))
    named = [f"the report in {path.parent}" for path in reports if (str(run.arm), str(run.seed)) in _reported(path)]
    started = [other.name for other in runs if _origin(other.folder) == run.fingerprint]
    return named + [f"{name}, which started from its weights" for name in started]


def _reported(path: Path) -> set[tuple[str, str]]:
    """Return arm and seed of each trial in the table of a report."""
    with path.open(newline="", encoding="utf-8") as file:
        return {(row.get("arm", ""), row.get("seed", "")) for row in csv.DictReader(file)}


def _origin(folder: Path) -> str | None:
    """Return the fingerprint of the run from whose weights the run in `folder` started, if it is known."""
    try:
        fingerprint = read_object(folder / ORIGIN).get("fingerprint")
    except (FileNotFoundError, Damaged):
        return None
    return fingerprint if isinstance(fingerprint, str) else None


def remove(run: StoredRun) -> None:
    """Remove the folder of a run at once: if it is interrupted, no half of a run is left under its name.

    Raises Busy if a process trains the run.
    """
    folder = within(runs_root(), run.folder)
    assert FINGERPRINT.fullmatch(folder.name)
    gone = folder.with_name(f".{folder.name}.{os.getpid()}{PARTIAL}")
    with hold(folder / LOCK, "this run"):
        folder.rename(gone)
    sync(gone.parent)
    shutil.rmtree(gone)


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*"))
