"""A study at a scale as data: trials of every arm with every seed, on the study's own data and on its probes."""

import operator
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from dsv2.config import ConfigError
from dsv2.printing import warn
from dsv2.storage.files import write_text
from dsv2.storage.rundir import FINGERPRINT, require_in_store, runs_root
from dsv2.storage.sealed import changed, hashes, read_sealed, write_sealed
from dsv2.storage.values import parse_yaml
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
        source: str | Path | Mapping[str, Any],
        scale: str = "smoke",
        seeds: Sequence[int] | None = None,
        overrides: Sequence[str] = (),
        *,
        folders: "Mapping[TrialKey, str] | None" = None,
    ) -> None:
        """Plan `source` (see `Plan`) with `seeds`, by default those of the scale, and `overrides` for every trial.

        `folders` names the trials' folders, for a stored study whose data may be gone. Raises ConfigError.
        """
        self.asked = None if seeds is None else _checked(seeds)
        if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
            raise ConfigError("overrides", overrides, 'a list of overrides, as in ["optim.lr=1e-3"]')
        super().__init__(source, scale, overrides)
        self.folder = folder_of_study(self.name, scale)
        named = isinstance(source, str | Path)
        self.source = str(source) if named else str(self.folder / DEFINITION)  # for command lines
        self.origin = origin_of(source)
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
        """Store the request and the study's contents, so that results and reports refer to the same trials.

        Raises ConfigError if the folder holds another study of this name. Warns if the trials are others than before,
        although the request is not, as after a change of the corpus.
        """
        self._compare_with_last()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / DEFINITION, yaml.safe_dump(self.node | {"name": self.name}, sort_keys=False))
        record = {
            "files": hashes(self.folder, [DEFINITION]),
            "source": self.source,
            "origin": self.origin,
            "seeds": self.asked,
            "overrides": self.overrides,
            "trials": [[trial.arm, trial.seed, trial.probe, trial.folder.name] for trial in self.trials],
        }
        write_sealed(self.folder / RECORD, record)

    def _compare_with_last(self) -> None:
        """Compare this request with the last one in the folder; see `remember`."""
        try:
            record = read_sealed(self.folder / RECORD)
            then, trials = parse_yaml((self.folder / DEFINITION).read_text()), record["trials"]
            folders = {TrialKey(arm, seed, probe): name for arm, seed, probe, name in trials}
        except (OSError, ValueError, KeyError, TypeError):
            return  # never run, or damaged; running it renews the record
        origin = record.get("origin", self.origin)
        if self.origin == origin_of(self.folder / DEFINITION):  # as a notebook's runner, from what it was told
            self.origin = origin
        same = then == parse_yaml(yaml.safe_dump(self.node | {"name": self.name}))
        if not same and origin != self.origin:
            held = f"{self.folder} holds the study of {origin}, and this one is of {self.origin}"
            raise ConfigError("sweep", self.name, f"a name of its own, set by `name:` in the study; {held}")
        keys = {TrialKey(trial.arm, trial.seed, trial.probe): trial.folder.name for trial in self.trials}
        others = any(folders.get(key, name) != name for key, name in keys.items())
        if same and others and tuple(record.get("overrides", ())) == self.overrides:
            warn(
                f"{self.name}: its corpus, its tokenizer or the code has changed since it was last run, so that its "
                f"trials are trained anew; the former ones stay in {self.folder / 'trials'}"
            )

    @property
    def arguments(self) -> list[str]:
        """The arguments of `python -m ablations.run` for this study."""
        seeds = [] if self.asked is None else [f"seeds=[{','.join(map(str, self.asked))}]"]
        return [f"sweep={self.source}", f"scale={self.scale}", *seeds, *self.overrides]

    @property
    def command(self) -> str:
        """The shell command that runs this study."""
        return f"python -m ablations.run {shlex.join(self.arguments)}"


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


class TrialKey(NamedTuple):
    """Identifies a trial within its study."""

    arm: str
    seed: int
    probe: str | None


def stored(name: str | Path, scale: str = "smoke") -> Study:
    """Return the study as it was last run: the contents of its file then, its seeds, overrides and trials.

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
        return _planned_again(source, scale, seeds, overrides)
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
    study.source, study.origin = source, record.get("origin", origin_of(given))
    elsewhere = path.suffix in SUFFIXES and path.is_file() and origin_of(given) != study.origin
    if elsewhere and definition(given)[1] | {"name": name} != study.node:
        valid = f"the study that was run as {name}, which is of {study.origin}; report it with sweep={name}"
        raise ConfigError("sweep", given, valid)
    return study


def _planned_again(source: str, scale: str, seeds: Sequence[int] | None, overrides: Sequence[str]) -> Study:
    """Plan a stored study from its file. Raises ConfigError if that has become another study."""
    study = Study(source, scale, seeds, overrides)
    others = any((study.folder / "trials").glob("*"))
    if others and not any(trial.folder.is_dir() for trial in study.trials):
        valid = f"the file of the study that {study.folder} holds; none of its trials is there"
        raise ConfigError("sweep", source, valid)
    return study
