"""A study at a scale as data: trials of every arm with every seed, on the study's own data and on its probes."""

import copy
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import yaml

from dsv2.config import ConfigError, digest
from dsv2.storage.files import write_text
from dsv2.storage.rundir import FINGERPRINT, finished, require_in_store, runs_root
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
        self.others: tuple[int, ...] = ()  # of a stored study: seeds with trials that its report does not cover
        self._folders = folders or {}
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
        self.report_folder = self.folder / "report"
        self.source = source if isinstance(source, str) else str(self.folder / DEFINITION)  # for command lines
        self.trials = self._trials()
        self._refuse_shared_folders()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The requested seeds, else the scale's, extended to the number that the study needs."""
        return self.planned_seeds if self.asked is None else self.asked

    def with_seeds(self, seeds: Sequence[int]) -> Self:
        """Return this study with other seeds."""
        other = copy.copy(self)
        other.asked = None if tuple(seeds) == super().seeds else tuple(seeds)
        other.trials = other._trials()
        other._refuse_shared_folders()
        return other

    def _trials(self) -> list[Trial]:
        return [
            self._trial(TrialKey(arm, seed, probe))
            for seed in self.seeds
            for arm in self.arms
            for probe in (None, *self.file.probes)
        ]

    def _trial(self, key: "TrialKey") -> Trial:
        run = replace(self.run_of(key.arm, key.probe), seed=key.seed + self.arms[key.arm].seed_offset)
        if run.trainer.devices > 1:
            valid = "1 in a study, whose trials run in parallel; train a single run with torchrun -m dsv2.train"
            raise ConfigError("trainer.devices", run.trainer.devices, valid)
        root = self.folder / "trials"
        folder = root / self._folders[key] if key in self._folders else folder_of(run, root)
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

    def remember(self) -> "Study":
        """Store the request and the study's contents, so that results and reports refer to the same trials.

        Returns the study that is reported. Requests that differ only in seeds are one study, reported over the most
        seeds of which every trial has finished. Any other request takes the stored one's place once it has as many
        finished trials; until then its report is written beside that of the stored one, `report_folder`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        record = _record(self.folder)
        recorded = record.folders if record else {}
        reported, known = self, {_key(trial): trial.folder.name for trial in self.trials}
        if record and self._continues(recorded):
            reported, known = self._most_complete(record), recorded | known
        elif record and self._count_finished(recorded.values()) > self._count_finished(known.values()):
            name = digest(sorted(known.values()))
            self.report_folder = self.folder / "reports" / name
            if self.source == str(self.folder / DEFINITION):
                self.source = str(self.folder / f"study-{name}.yaml")
                self._write_definition(Path(self.source))
            (self.folder / RECORD).touch()  # when trials were last asked for
            return self
        self._write_definition(self.folder / DEFINITION)
        values = {
            "files": hashes(self.folder, [DEFINITION]),
            "source": self.source,
            "seeds": reported.asked,
            "overrides": self.overrides,
            "trials": [[*key, name] for key, name in known.items()],
        }
        write_sealed(self.folder / RECORD, values)
        return reported

    def _write_definition(self, path: Path) -> None:
        write_text(path, yaml.safe_dump(self.node | {"name": self.name}, sort_keys=False))

    def _continues(self, recorded: "Mapping[TrialKey, str]") -> bool:
        """Whether the recorded trials are those that this study has for their seeds."""
        arms = {(key.arm, key.probe) for key in recorded}
        return arms == {(trial.arm, trial.probe) for trial in self.trials} and all(
            self._trial(key).folder.name == name for key, name in recorded.items()
        )

    def _most_complete(self, record: "_Record") -> "Study":
        """Choose the most seeds of which every trial has finished, else all that were asked for."""
        earlier = super().seeds if record.seeds is None else tuple(record.seeds)
        together = self.with_seeds(tuple(dict.fromkeys([*earlier, *self.seeds])))
        by_size = sorted([self, self.with_seeds(earlier)], key=lambda study: -len(study.seeds))
        complete = (
            study
            for study in (together, *by_size)
            if self._count_finished(trial.folder.name for trial in study.trials) == len(study.trials)
        )
        return next(complete, together)

    def _count_finished(self, folders: Iterable[str]) -> int:
        return sum(finished(self.folder / "trials" / name) is not None for name in folders)

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


def _key(trial: Trial) -> TrialKey:
    return TrialKey(trial.arm, trial.seed, trial.probe)


class _Record(NamedTuple):
    """What a study's folder says of the request that is reported there."""

    source: str | None
    seeds: list[int] | None  # that are reported; None: those of the scale
    overrides: list[str]
    folders: dict[TrialKey, str]  # of all trials that were ever asked for
    files: dict[str, str]


def _record(folder: Path) -> _Record | None:
    """Read a study's record; None if it is missing or damaged."""
    try:
        return _read_record(folder)
    except (FileNotFoundError, ConfigError):
        return None


def _read_record(folder: Path) -> _Record:
    """Read a study's record. Raises FileNotFoundError, and ConfigError if it is damaged."""
    try:
        values = read_sealed(folder / RECORD)
        record = _Record(
            values.get("source"),
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
            and (record.source or "").isprintable()
        )
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise ConfigError("sweep", folder.parent.name, f"{folder / RECORD} is damaged; run the study again to renew it")
    return record


def stored(name: str, scale: str = "smoke") -> Study:
    """Return the study that is reported: the contents of its file then, its seeds, overrides and trials.

    `name` is a study's name or the path of its file; if it was never run, it is planned from that.
    """
    given, path = name, Path(name)
    if path.suffix in SUFFIXES:
        name = definition(name)[0] if path.is_file() else path.stem
    require_name("sweep", name)
    require_name("scale", scale)
    folder = runs_root() / name / scale
    try:
        record = _read_record(folder)
    except FileNotFoundError:
        return Study(given, scale)
    source, seeds = record.source or given, record.seeds
    if not record.files and not (folder / DEFINITION).is_file():  # the store predates stored definitions
        return Study(source, scale, seeds, record.overrides)
    if changed(folder, record.files):
        valid = f"{folder / DEFINITION} cannot be used; run the study again to renew it. It was changed since"
        raise ConfigError("sweep", name, valid)
    try:
        node = definition(str(folder / DEFINITION))[1]
        study = Study(node, scale, seeds, record.overrides, folders=record.folders)
        if study.name != name:
            raise ConfigError("name", study.name, f"{name}, as its folder")
    except ConfigError as error:
        valid = f"{folder / DEFINITION} cannot be used; run the study again to renew it. {error}"
        raise ConfigError("sweep", name, valid) from None
    study.source = source
    study.others = tuple(dict.fromkeys(key.seed for key in record.folders if key.seed not in study.seeds))
    return study
