"""A study at a scale as data: every arm with every seed, on the study's own data and on its probes."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from dsv2.config import ConfigError
from dsv2.storage.files import write_json, write_text
from dsv2.storage.rundir import runs_root
from dsv2.study.files import SUFFIXES, definition
from dsv2.study.plan import Plan
from dsv2.training.run import Run, folder_of

if TYPE_CHECKING:
    import pandas as pd

RECORD, DEFINITION = "study.json", "study.yaml"  # in a study's folder: what was asked for, and the study as it then was


@dataclass(frozen=True)
class Trial:
    """One arm with one seed; on a probe, the same model trained on a synthetic task."""

    arm: str
    seed: int
    run: Run.Config
    folder: Path
    probe: str | None = None

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}" + (f"-{self.probe}" if self.probe else "")


class Study(Plan):
    """A study at a scale: its text, its arms, its trials and the folder they are stored in."""

    def __init__(
        self,
        source: str | Mapping[str, Any],
        scale: str = "smoke",
        seeds: Sequence[int] | None = None,
        overrides: Sequence[str] = (),
        *,
        folders: "Mapping[TrialKey, str] | None" = None,
    ) -> None:
        """Plan `source` (see `Plan`) with `seeds`, by default those of the scale, and `overrides` of every trial.

        `folders` names the folders of its trials, for a study whose data may be gone. Raises ConfigError.
        """
        self.asked = None if seeds is None else tuple(seeds)
        super().__init__(source, scale, overrides)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds", list(self.seeds), "at least one, each once")
        if not all(type(seed) is int and 0 <= seed < 2**32 for seed in self.seeds):
            raise ConfigError("seeds", list(self.seeds), "whole numbers from 0 to 2^32 - 1")
        self.folder = runs_root() / self.name / scale
        self.source = source if isinstance(source, str) else str(self.folder / DEFINITION)  # what a command line names
        self.trials = [
            self._trial(TrialKey(arm, seed, probe), folders)
            for seed in self.seeds
            for arm in self.arms
            for probe in (None, *self.file.probes)
        ]
        self._refuse_shared_folders()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those asked for, else the scale's and as many more as the study's claim needs."""
        return super().seeds if self.asked is None else self.asked

    def _trial(self, key: "TrialKey", folders: "Mapping[TrialKey, str] | None") -> Trial:
        run = replace(self.run_of(key.arm, key.probe), seed=key.seed + self.arms[key.arm].seed_offset)
        if run.trainer.devices > 1:
            valid = "1 in a study, whose trials run beside each other; torchrun trains one with dsv2.train"
            raise ConfigError("trainer.devices", run.trainer.devices, valid)
        root = self.folder / "trials"
        folder = root / folders[key] if folders and key in folders else folder_of(run, root)
        return Trial(key.arm, key.seed, run, folder, key.probe)

    def _refuse_shared_folders(self) -> None:
        first: dict[Path, Trial] = {}
        for trial in self.trials:
            if (other := first.setdefault(trial.folder, trial)) is not trial:
                moved = max(trial.arm, other.arm, key=lambda arm: self.arms[arm].seed_offset)
                valid = f"apart from the seeds of other arms: {trial.name} and {other.name} are one run"
                raise ConfigError(f"arms.{moved}.seed_offset", self.arms[moved].seed_offset, valid)

    def accounting(self) -> "pd.DataFrame":
        """One row per arm: what it is, parameters, FLOPs and cache elements per token, budget, seeds, mismatch."""
        import pandas as pd

        return pd.DataFrame(self.budgets())

    def remember(self) -> None:
        """Note what was asked for and the study as it is, so that results and reports speak of the same trials."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / DEFINITION, yaml.safe_dump(self.node | {"name": self.name}, sort_keys=False))
        record = {
            "source": self.source,
            "seeds": self.asked,
            "overrides": self.overrides,
            "trials": [[trial.arm, trial.seed, trial.probe, trial.folder.name] for trial in self.trials],
        }
        write_json(self.folder / RECORD, record)

    @property
    def arguments(self) -> list[str]:
        """What `python -m ablations.run` is given to run it."""
        seeds = [] if self.asked is None else [f"seeds=[{','.join(map(str, self.asked))}]"]
        return [f"sweep={self.source}", f"scale={self.scale}", *seeds, *self.overrides]

    @property
    def command(self) -> str:
        """What a user types to run it."""
        return f"python -m ablations.run {shlex.join(self.arguments)}"


class TrialKey(NamedTuple):
    """What tells the trials of a study apart."""

    arm: str
    seed: int
    probe: str | None


def stored(name: str, scale: str = "smoke") -> Study:
    """Return the study as it was last run: the file as it then was, its seeds, overrides and trials.

    `name` is a study's name or the path of its file; one that was never run is planned from there.
    """
    given, path = name, Path(name)
    if path.suffix in SUFFIXES:
        name = definition(name)[0] if path.is_file() else path.stem
    folder = runs_root() / name / scale
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
        source, seeds, overrides = record.get("source") or given, record["seeds"], record["overrides"]
        folders = {
            TrialKey(arm, seed, probe): fingerprint for arm, seed, probe, fingerprint in record.get("trials", [])
        }
        whole = isinstance(overrides, list) and all(isinstance(seed, int) for seed in seeds or ())
    except FileNotFoundError:
        return Study(given, scale)
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise ConfigError("sweep", name, f"{folder / RECORD} is damaged; run the study again to renew it")
    if not (folder / DEFINITION).is_file():  # a store from before studies were kept
        return Study(source, scale, seeds, overrides)
    try:
        study = Study(definition(str(folder / DEFINITION))[1], scale, seeds, overrides, folders=folders)
    except ConfigError as error:
        valid = f"{folder / DEFINITION} cannot be used; run the study again to renew it. {error}"
        raise ConfigError("sweep", name, valid) from None
    study.source = source
    return study
