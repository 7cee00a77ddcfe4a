"""The record in a study's folder: where the study came from, and which trials were asked for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsv2.config import ConfigError
from dsv2.storage.rundir import FINGERPRINT, require_in_store, runs_root
from dsv2.storage.sealed import read_sealed
from dsv2.study.files import SUFFIXES

RECORD, DEFINITION = "study.json", "study.yaml"  # in a study's folder: the request, and the study's contents


class TrialKey(NamedTuple):
    """Identifies a trial within its study."""

    arm: str
    seed: int
    probe: str | None


class Record(NamedTuple):
    """What a study's folder says of the request that is reported there."""

    source: str | None  # as it was named
    origin: str | None  # see `origin_of`; None: stored before it was kept
    seeds: list[int] | None  # that are reported; None: those of the scale
    overrides: list[str]
    folders: dict[TrialKey, str]  # of all trials that were ever asked for
    files: dict[str, str]  # hashes


def read_record(folder: Path) -> Record:
    """Read the record of the study in `folder`. Raises FileNotFoundError, and ConfigError if it is damaged."""
    try:
        values = read_sealed(folder / RECORD)
        record = Record(
            values.get("source"),
            values.get("origin"),
            values["seeds"],
            values["overrides"],
            {TrialKey(arm, seed, probe): name for arm, seed, probe, name in values.get("trials", [])},
            dict(values.get("files", {})),
        )
        valid = (
            isinstance(record.overrides, list)
            and all(isinstance(word, str) for word in record.overrides)
            and all(isinstance(seed, int) for seed in record.seeds or ())
            and all(isinstance(key.seed, int) for key in record.folders)
            and all(FINGERPRINT.fullmatch(name) for name in record.folders.values())
            and ((record.source or "") + (record.origin or "")).isprintable()
        )
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise ConfigError("sweep", folder.parent.name, f"{folder / RECORD} is damaged; run the study again to renew it")
    return record


def known_record(folder: Path) -> Record | None:
    """Read a study's record; None if it is missing or damaged, so that running the study renews it."""
    try:
        return read_record(folder)
    except (FileNotFoundError, ConfigError):
        return None


def folder_of_study(name: str, scale: str) -> Path:
    """Return the folder of a study. Raises ConfigError if it leads out of the store, or there can be no store."""
    try:
        root = runs_root()
    except ValueError as error:
        raise ConfigError("DSV2_RUNS", os.environ["DSV2_RUNS"], str(error).partition(": ")[2]) from None
    try:
        require_in_store(root / name / scale)
    except ValueError as error:
        raise ConfigError("sweep", name, str(error)) from None
    return root / name / scale


def origin_of(source: str | Path | Mapping[str, Any]) -> str:
    """Return where a study comes from, wherever it is named from: its name, the full path of its file, or python."""
    if not isinstance(source, str | Path):
        return "a dictionary"
    return str(Path(source).absolute()) if Path(source).suffix in SUFFIXES else str(source)
