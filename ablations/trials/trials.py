"""A study at a scale as data: trials of every arm with every seed, on the study's own data and on its probes."""

import copy
import operator
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from ablations.trials.record import (
    DEFINITION,
    RECORD,
    Record,
    TrialKey,
    folder_of_study,
    known_record,
    origin_of,
    read_record,
)
from dsv2.composition import require_overrides
from dsv2.config import ConfigError, digest
from dsv2.printing import warn
from dsv2.storage.files import write_text
from dsv2.storage.rundir import finished
from dsv2.storage.sealed import changed, hashes, write_sealed
from dsv2.storage.values import parse_yaml
from dsv2.study.files import SUFFIXES, definition
from dsv2.study.plan import Plan, from_trial, with_origin
from dsv2.study.words import require_name
from dsv2.training.run import Run, folder_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Trial:
    """One arm with one seed; with a probe, the same model trained on a synthetic task."""

    arm: str
    seed: int
    run: Run.Config
    folder: Path
    probe: str | None = None
    origins: tuple["Trial", ...] = ()  # those that its run names: from whose weights it starts, and whose it reads

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}" + (f"-{self.probe}" if self.probe else "")

    @property
    def key(self) -> TrialKey:
        return TrialKey(self.arm, self.seed, self.probe)


class Study(Plan):
    """A study at a scale: its description, arms, trials and folder."""

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        scale: str = "smoke",
        seeds: Sequence[int] | None = None,
        overrides: Sequence[str] = (),
        *,
        folders: Mapping[TrialKey, str] | None = None,
    ) -> None:
        """Plan `source` (see `Plan`) with `seeds`, by default those of the scale, and `overrides` for every trial.

        `folders` names the trials' folders, for a stored study whose data may be gone. Raises ConfigError.
        """
        self.asked = None if seeds is None else _checked(seeds)
        self.formats: tuple[str, ...] = ("png",)  # of the figures of its report
        self.mixed_kernels = False  # whether verdicts may rest on trials that were computed with different kernels
        self.others: tuple[int, ...] = ()  # of a stored study: seeds with trials that its report does not cover
        self._folders = folders or {}
        require_overrides(overrides)
        super().__init__(source, scale, overrides)
        self.folder = folder_of_study(self.name, scale)
        self.report_folder = self.folder / "report"
        named = isinstance(source, str | Path)
        self.source = str(source) if named else str(self.folder / DEFINITION)  # for command lines
        self.origin = origin_of(source)
        self.trials = self._trials()
        self._refuse_shared_folders()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The requested seeds, else the scale's, extended to the number that the study needs."""
        return self.planned_seeds if self.asked is None else self.asked

    def with_seeds(self, seeds: Sequence[int]) -> Self:
        """Return this study with other seeds. Raises ConfigError."""
        other = copy.copy(self)
        checked = _checked(seeds)
        other.asked = None if checked == self.planned_seeds else checked
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

    def _trial(self, key: TrialKey) -> Trial:
        run = replace(self.run_of(key.arm, key.probe), seed=key.seed + self.arms[key.arm].seed_offset)
        if run.mesh.size > 1:
            valid = "1 in a study, whose trials run in parallel; train a single run with python -m dsv2.train"
            raise ConfigError(run.mesh.axis, run.mesh.largest, valid)
        root, origins = self.folder / "trials", list[Trial]()
        for name, first in self.named_by(key.arm).items():
            origin = self._trial(key._replace(arm=first))
            fingerprint = origin.folder.name if origin.key in self._folders else origin.run.fingerprint()
            run = with_origin(run, name, from_trial(origin.run, origin.folder, fingerprint))
            origins.append(origin)
        folder = root / self._folders[key] if key in self._folders else folder_of(run, root)
        return Trial(key.arm, key.seed, run, folder, key.probe, tuple(origins))

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

    # ---- what the folder remembers -----------------------------------------------------------------------------------

    def remember(self) -> None:
        """Store the request and the study's contents, so that results and reports refer to the same trials.

        Raises ConfigError if the folder holds another study of this name. Warns if the trials are others than before,
        although the request is not, as after a change of the corpus.
        """
        record = known_record(self.folder)
        if record is not None:
            self._compare_with(record)
        self.reported()

    def reported(self) -> "Study":
        """Store which request is reported, and return it.

        Requests that differ only in seeds are one study, reported over the most seeds of which every trial has
        finished. Any other request takes the stored one's place once it has as many finished trials; until then its
        report is written beside that of the stored one, to its `report_folder`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        record = known_record(self.folder)
        recorded = record.folders if record else {}
        reported, known = self, {trial.key: trial.folder.name for trial in self.trials}
        if record and self._continues(recorded):
            reported, known = self._most_complete(record), recorded | known
        elif record and self._count_finished(recorded.values()) > self._count_finished(known.values()):
            self._stand_aside(digest(sorted(known.values())))
            return self
        self._write_definition(self.folder / DEFINITION)
        values = {
            "files": hashes(self.folder, [DEFINITION]),
            "source": self.source,
            "origin": self.origin,
            "seeds": reported.asked,
            "overrides": self.overrides,
            "trials": [[*key, name] for key, name in known.items()],
        }
        write_sealed(self.folder / RECORD, values)
        return reported

    def _stand_aside(self, name: str) -> None:
        """Leave record and report to the stored request, and use files of our own, called `name`."""
        self.report_folder = self.folder / "reports" / name
        if self.source == str(self.folder / DEFINITION):
            self.source = str(self.folder / f"study-{name}.yaml")
            self._write_definition(Path(self.source))
        (self.folder / RECORD).touch()  # when trials were last asked for

    def _write_definition(self, path: Path) -> None:
        write_text(path, yaml.safe_dump(self.node | {"name": self.name}, sort_keys=False))

    def _compare_with(self, record: Record) -> None:
        """Compare this request with the last one in the folder; see `remember`."""
        try:
            then = parse_yaml((self.folder / DEFINITION).read_text())
        except (OSError, ValueError):
            return  # running the study renews it
        origin = record.origin or self.origin
        if Path(self.origin).parent == self.folder.absolute():  # as a notebook's runner, from what it was told
            self.origin = origin
        same = then == parse_yaml(yaml.safe_dump(self.node | {"name": self.name}))
        if not same and origin != self.origin:
            held = f"{self.folder} holds the study of {origin}, and this one is of {self.origin}"
            raise ConfigError("sweep", self.name, f"a name of its own, set by `name:` in the study; {held}")
        others = any(record.folders.get(trial.key, trial.folder.name) != trial.folder.name for trial in self.trials)
        if same and others and tuple(record.overrides) == self.overrides:
            warn(
                f"{self.name}: its corpus, its tokenizer or the code has changed since it was last run, so that its "
                f"trials are trained anew; the former ones stay in {self.folder / 'trials'}"
            )

    def _continues(self, recorded: Mapping[TrialKey, str]) -> bool:
        """Whether the recorded trials are those that this study has for their seeds."""
        arms = {(key.arm, key.probe) for key in recorded}
        return arms == {(trial.arm, trial.probe) for trial in self.trials} and all(
            self._trial(key).folder.name == name for key, name in recorded.items()
        )

    def _most_complete(self, record: Record) -> "Study":
        """Choose the most seeds of which every trial has finished, else all that were asked for."""
        earlier = self.planned_seeds if record.seeds is None else tuple(record.seeds)
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

    # ---- commands ----------------------------------------------------------------------------------------------------

    @property
    def arguments(self) -> list[str]:
        """The arguments of `python -m ablations.run` for this study."""
        seeds = [] if self.asked is None else [f"seeds=[{','.join(map(str, self.asked))}]"]
        mixed = ["mixed_kernels=true"] if self.mixed_kernels else []
        formats = [f"report.formats=[{','.join(self.formats)}]"] if self.formats != ("png",) else []
        return [f"sweep={self.source}", f"scale={self.scale}", *seeds, *mixed, *formats, *self.overrides]

    @property
    def command(self) -> str:
        """The shell command that runs this study."""
        return f"python -m ablations.run {shlex.join(self.arguments)}"


def _checked(seeds: Any) -> tuple[int, ...]:
    """Return the seeds as whole numbers. Raises ConfigError."""
    try:
        checked = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        raise ConfigError("seeds", seeds, "a list of whole numbers, as in [0, 1]") from None
    if not checked or len(set(checked)) < len(checked):
        raise ConfigError("seeds", list(checked), "at least one, without duplicates")
    if not all(0 <= seed < 2**32 for seed in checked) or any(isinstance(seed, bool) for seed in seeds):
        raise ConfigError("seeds", list(seeds), "whole numbers from 0 to 2^32 - 1")
    return checked


def stored(name: str | Path, scale: str = "smoke") -> Study:
    """Return the study that is reported: the contents of its file then, its seeds, overrides and trials.

    `name` is a study's name or the path of its file; if it was never run, it is planned from that. Raises ConfigError
    if the store has no such study, or another one of that name.
    """
    if not isinstance(name, str | Path):
        raise ConfigError("name", name, "a study's name, or the path of its YAML file")
    name = given = str(name)
    path = Path(name)
    if path.suffix in SUFFIXES:
        name = definition(name)[0] if path.is_file() else path.stem
    require_name("sweep", name)
    require_name("scale", scale)
    folder = folder_of_study(name, scale)
    try:
        record = read_record(folder)
    except FileNotFoundError:
        return Study(given, scale)
    source = record.source or given
    if not record.files and not (folder / DEFINITION).is_file():  # the store predates stored definitions
        return _planned_again(source, scale, record)
    if changed(folder, record.files):
        valid = f"{folder / DEFINITION} cannot be used; run the study again to renew it. It was changed since"
        raise ConfigError("sweep", name, valid)
    try:
        node = definition(str(folder / DEFINITION))[1]
        study = Study(node, scale, record.seeds, record.overrides, folders=record.folders)
        if study.name != name:
            raise ConfigError("name", study.name, f"{name}, as its folder")
    except ConfigError as error:
        valid = f"{folder / DEFINITION} cannot be used; run the study again to renew it. {error}"
        raise ConfigError("sweep", name, valid) from None
    study.source, study.origin = source, record.origin or origin_of(given)
    study.others = tuple(dict.fromkeys(key.seed for key in record.folders if key.seed not in study.seeds))
    elsewhere = path.suffix in SUFFIXES and path.is_file() and origin_of(given) != study.origin
    if elsewhere and definition(given)[1] | {"name": name} != study.node:
        valid = f"the study that was run as {name}, which is of {study.origin}; report it with sweep={name}"
        raise ConfigError("sweep", given, valid)
    return study


def _planned_again(source: str, scale: str, record: Record) -> Study:
    """Plan a stored study from its file. Raises ConfigError if that has become another study."""
    study = Study(source, scale, record.seeds, record.overrides)
    others = any((study.folder / "trials").glob("*"))
    if others and not any(trial.folder.is_dir() for trial in study.trials):
        valid = f"the file of the study that {study.folder} holds; none of its trials is there"
        raise ConfigError("sweep", source, valid)
    return study
