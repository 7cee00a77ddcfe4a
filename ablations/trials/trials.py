"""A study at a scale as data: trials of every arm with every seed, on the study's own data and on its probes."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from dsv2.config import ConfigError
from dsv2.storage.files import write_text
from dsv2.storage.rundir import FINGERPRINT, require_in_store, runs_root
from dsv2.storage.sealed import changed, hashes, read_sealed, write_sealed
from dsv2.study.files import SUFFIXES, definition
from dsv2.study.plan import Plan
from dsv2.study.words import require_name
from dsv2.training.run import Run, folder_of

if TYPE_CHECKING:
    import pandas as pd

RECORD, DEFINITION = "study.json", "study.yaml"  # in a study's folder: the request, and the study's contents


@dataclass(frozen=True)
class Trial:
    """One arm with one seed; with a probe, the same model trained on a synthetic task."""

    arm: str
    seed: int
    run: Run.Config
    folder: Path
    probe: str | None = None

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}" + (f"-{self.probe}" if self.probe else "")


class Study(Plan):
    """A study at a scale: its description, arms, trials and folder."""

    def __init__(
        self,
        source: str | Mapping[str, Any],
        scale: str = "smoke",
        seeds: Sequence[int] | None = None,
        overrides: Sequence[str] = (),
        *,
        folders: "Mapping[TrialKey, str] | None" = None,
    ) -> None:
        """Plan `source` (see `Plan`) with `seeds`, by default those of the scale, and `overrides` for every trial.

        `folders` names the trials' folders, for a stored study whose data may be gone. Raises ConfigError.
        """
        self.asked = None if seeds is None else tuple(seeds)
        super().__init__(source, scale, overrides)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds", list(self.seeds), "at least one, without duplicates")
        if not all(type(seed) is int and 0 <= seed < 2**32 for seed in self.seeds):
            raise ConfigError("seeds", list(self.seeds), "whole numbers from 0 to 2^32 - 1")
        self.folder = runs_root() / self.name / scale
        try:
            require_in_store(self.folder)
        except ValueError as error:
            raise ConfigError("sweep", self.name, str(error)) from None
        self.source = source if isinstance(source, str) else str(self.folder / DEFINITION)  # for command lines
        self.trials = [
            self._trial(TrialKey(arm, seed, probe), folders)
            for seed in self.seeds
            for arm in self.arms
            for probe in (None, *self.file.probes)
        ]
        self._refuse_shared_folders()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The requested seeds, else the scale's, extended to the number that the study needs."""
        return self.planned_seeds if self.asked is None else self.asked

    def _trial(self, key: "TrialKey", folders: "Mapping[TrialKey, str] | None") -> Trial:
        run = replace(self.run_of(key.arm, key.probe), seed=key.seed + self.arms[key.arm].seed_offset)
        if run.trainer.devices > 1:
            valid = "1 in a study, whose trials run in parallel; train a single run with torchrun -m dsv2.train"
            raise ConfigError("trainer.devices", run.trainer.devices, valid)
        root = self.folder / "trials"
        folder = root / folders[key] if folders and key in folders else folder_of(run, root)
        return Trial(key.arm, key.seed, run, folder, key.probe)

    def _refuse_shared_folders(self) -> None:
        first: dict[Path, Trial] = {}
        for trial in self.trials:
            if (other := first.setdefault(trial.folder, trial)) is not trial:
                moved = max(trial.arm, other.arm, key=lambda arm: self.arms[arm].seed_offset)
                valid = f"an offset that makes seeds distinct: {trial.name} and {other.name} are the same run"
                raise ConfigError(f"arms.{moved}.seed_offset", self.arms[moved].seed_offset, valid)

    def accounting(self) -> "pd.DataFrame":
        """Return one row per arm: description, parameters, FLOPs and cache elements per token, budget, mismatch."""
        import pandas as pd

        return pd.DataFrame(self.budgets())

    def remember(self) -> None:
        """Store the request and the study's contents, so that results and reports refer to the same trials."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / DEFINITION, yaml.safe_dump(self.node | {"name": self.name}, sort_keys=False))
        record = {
            "files": hashes(self.folder, [DEFINITION]),
            "source": self.source,
            "seeds": self.asked,
            "overrides": self.overrides,
            "trials": [[trial.arm, trial.seed, trial.probe, trial.folder.name] for trial in self.trials],
        }
        write_sealed(self.folder / RECORD, record)

    @property
    def arguments(self) -> list[str]:
        """The arguments of `python -m ablations.run` for this study."""
        seeds = [] if self.asked is None else [f"seeds=[{','.join(map(str, self.asked))}]"]
        return [f"sweep={self.source}", f"scale={self.scale}", *seeds, *self.overrides]

    @property
    def command(self) -> str:
        """The shell command that runs this study."""
        return f"python -m ablations.run {shlex.join(self.arguments)}"


class TrialKey(NamedTuple):
    """Identifies a trial within its study."""

    arm: str
    seed: int
    probe: str | None


def stored(name: str, scale: str = "smoke") -> Study:
    """Return the study as it was last run: the contents of its file then, its seeds, overrides and trials.

    `name` is a study's name or the path of its file; if it was never run, it is planned from that.
    """
    given, path = name, Path(name)
    if path.suffix in SUFFIXES:
        name = definition(name)[0] if path.is_file() else path.stem
    require_name("sweep", name)
    require_name("scale", scale)
    folder = runs_root() / name / scale
    try:
        record = read_sealed(folder / RECORD)
        source, seeds, overrides = record.get("source") or given, record["seeds"], record["overrides"]
        folders = {
            TrialKey(arm, seed, probe): fingerprint for arm, seed, probe, fingerprint in record.get("trials", [])
        }
        valid_record = (
            isinstance(overrides, list)
            and all(isinstance(word, str) for word in overrides)
            and all(isinstance(seed, int) for seed in seeds or ())
            and all(FINGERPRINT.fullmatch(fingerprint) for fingerprint in folders.values())
            and source.isprintable()
        )
        files = dict(record.get("files", {}))
    except FileNotFoundError:
        return Study(given, scale)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        valid_record = False
    if not valid_record:
        raise ConfigError("sweep", name, f"{folder / RECORD} is damaged; run the study again to renew it")
    if not files and not (folder / DEFINITION).is_file():  # the store predates stored definitions
        return Study(source, scale, seeds, overrides)
    if changed(folder, files):
        valid = f"{folder / DEFINITION} cannot be used; run the study again to renew it. It was changed since"
        raise ConfigError("sweep", name, valid)
    try:
        study = Study(definition(str(folder / DEFINITION))[1], scale, seeds, overrides, folders=folders)
        if study.name != name:
            raise ConfigError("name", study.name, f"{name}, as its folder")
    except ConfigError as error:
        valid = f"{folder / DEFINITION} cannot be used; run the study again to renew it. {error}"
        raise ConfigError("sweep", name, valid) from None
    study.source = source
    return study
