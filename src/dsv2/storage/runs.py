"""The runs under the root: what there is, and the names by which each is found.

Everything here is read from small files, one per finished run, so that a store of a thousand runs answers at once;
neither torch nor pandas is imported.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from dsv2.printing import warn_once
from dsv2.storage.paths import within
from dsv2.storage.rundir import CONFIG, FINGERPRINT, LOCK, RESULT, runs_root
from dsv2.storage.sealed import Damaged, read_sealed
from dsv2.storage.values import read_yaml

STUDY = "study.json"  # in a study's folder; `ablations/trials/record.py` writes it
TRIALS = "trials"
MOST_NAMED = 4  # candidates in the line of an error


class Trial(NamedTuple):
    """A trial that a study's record lists."""

    study: str
    scale: str
    arm: str
    seed: int
    probe: str | None
    folder: Path

    @property
    def name(self) -> str:
        """The full name, as in `attention_moe/tiny/small_mla/0/recall`."""
        return "/".join(filter(None, (self.study, self.scale, self.arm, str(self.seed), self.probe)))

    @property
    def setting(self) -> tuple[str, str, str | None]:
        """What trials have in common whose arms can be compared."""
        return self.study, self.scale, self.probe

    def names(self) -> set[str]:
        """Return all names: the full one, those without the scale or the study too, and W&B's, as `small_mla-s0`."""
        probe = () if self.probe is None else (self.probe,)
        ends = "/".join((self.arm, str(self.seed), *probe)), "-".join((self.arm, f"s{self.seed}", *probe))
        return {f"{start}{end}" for start in (f"{self.study}/{self.scale}/", f"{self.study}/", "") for end in ends}


class StoredRun(NamedTuple):
    """A run as its folder and `result.json` describe it, without a look at its other files."""

    name: str  # the full name of a trial; of another run, or of a trial that its study no longer lists, the fingerprint
    study: str | None
    scale: str | None
    arm: str | None
    seed: int | None
    probe: str | None
    fingerprint: str
    status: str  # finished, failed, diverged, damaged, training or unfinished
    metrics: Mapping[str, float]
    tokens: int | None
    seconds: float | None  # of training
    ended: str  # ISO 8601; "" while there is no result
    folder: Path


# ---- what there is ---------------------------------------------------------------------------------------------------


def list_runs(study: str | None = None) -> list[StoredRun]:
    """Return the runs under `runs_root()`, sorted by folder of the study, then as its record lists them.

    `study` selects those of a study, as in `balance_losses`, or of one of its scales, as in `balance_losses/tiny`.
    Raises ValueError if there is no folder of that name.
    """
    root = runs_root()
    if study is not None and study.strip("/") not in (known := _places(root)):
        close = get_close_matches(study, known, n=MOST_NAMED) or known[:MOST_NAMED]
        there = f"those are {', '.join(close)}" if close else "there are none"
        raise ValueError(f"STUDY={study!r}: must be a study, or study/scale, with runs under {root}; {there}")
    folders = [root / study.strip("/")] if study else sorted(path for path in root.glob("*") if _visible(path))
    return [run for folder in folders for run in _runs_in(root, folder)]


def _places(root: Path) -> list[str]:
    """Return the names of the folders of runs, and of studies with each of their scales."""
    folders = [path for path in sorted(root.glob("*")) if _visible(path)]
    scales = [path.parent for folder in folders for path in sorted(folder.glob(f"*/{TRIALS}"))]
    return [str(path.relative_to(root)) for path in (*folders, *scales)]


def _visible(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _runs_in(root: Path, folder: Path) -> Iterator[StoredRun]:
    """Yield the runs in the folder of a study, of one of its scales, or of single runs."""
    yield from (_stored(path, None) for path in sorted(folder.glob("*")) if _is_run(root, path))
    places = [folder] if (folder / TRIALS).is_dir() else sorted(path.parent for path in folder.glob(f"*/{TRIALS}"))
    for place in places:
        listed = {trial.folder.name: trial for trial in _trials(place)}
        for name in (*listed, *sorted({path.name for path in place.glob(f"{TRIALS}/*")} - set(listed))):
            if _is_run(root, path := place / TRIALS / name):
                yield _stored(path, listed.get(name))


def _is_run(root: Path, path: Path) -> bool:
    """Whether a folder of the store is that of a run. Warns of one that leads elsewhere, in which nothing is read."""
    if not FINGERPRINT.fullmatch(path.name) or not (path / CONFIG).is_file():
        return False
    try:
        within(root, path / RESULT)
    except ValueError as error:
        warn_once(error)
        return False
    return True


def _stored(folder: Path, trial: Trial | None) -> StoredRun:
    """Describe the run in `folder`, which is a listed trial or another run."""
    result: dict[str, Any] = {}
    try:
        result = read_sealed(folder / RESULT)
        status = str(result.get("status"))
    except FileNotFoundError:
        status = "training" if _is_trained(folder) else "unfinished"
    except Damaged:
        status = "damaged"
    place = folder.parents[1]
    study, scale = (place.parent.name, place.name) if folder.parent.name == TRIALS else (result.get("study"), None)
    arm, seed, probe = trial[2:5] if trial else (result.get("arm"), result.get("seed"), result.get("probe"))
    metrics = result.get("metrics", {})
    return StoredRun(
        trial.name if trial else folder.name,
        *(study, scale, arm, seed, probe, folder.name, status),
        metrics if isinstance(metrics, dict) else {},
        *(result.get("tokens"), result.get("seconds"), str(result.get("ended", "")), folder),
    )


def _is_trained(folder: Path) -> bool:
    """Whether a process holds the lock of a run."""
    if not (folder / f"{LOCK}.json").is_file():
        return False
    from dsv2.storage.locks import is_held  # imports pydantic

    return is_held(folder / LOCK)


# ---- names -----------------------------------------------------------------------------------------------------------


def find_run(name: str | Path) -> Path:
    """Resolve `name` to a run directory.

    It is a path; `sweep/scale/arm/seed`, followed by the probe of a trial on one, as in
    `attention_moe/tiny/small_mla/0/recall`; the same without the scale, or without sweep and scale, where one run
    matches; W&B's name of the run, `arm-sSEED`, alone or in the place of arm and seed; or the first digits of a
    fingerprint. Names are looked up under `runs_root()`. Raises ValueError, naming candidates, if no run matches, or
    more than one.
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"RUN={name!r}: must be a run's name or path, as text or a Path")
    text, root = str(name), runs_root()
    if text and Path(name).is_dir():
        return Path(name)
    if FINGERPRINT.fullmatch(text):
        places = {*root.glob(f"*/{text}*/{CONFIG}"), *root.glob(f"*/*/{TRIALS}/{text}*/{CONFIG}")}
        if found := {str(path.parent): path.parent for path in sorted(places)}:
            return _only(text, found)
    trials = {trial.name: trial for trial in list_trials()}
    matching = {full: trial.folder for full, trial in trials.items() if text in trial.names() and trial.folder.is_dir()}
    if matching:
        return within(root, matching.get(text) or _only(text, matching))
    valid = f"a run directory, sweep/scale/arm/seed, or the first digits of a fingerprint under {root}"
    raise ValueError(f"RUN={text!r}: {valid}{_instead(text, trials)}")


def _only(text: str, found: Mapping[str, Path]) -> Path:
    """Return the only run found. Raises ValueError if there are more."""
    if len(found) == 1:
        return next(iter(found.values()))
    more = ", ..." if len(found) > MOST_NAMED else ""
    named = ", ".join(list(found)[:MOST_NAMED]) + more
    raise ValueError(f"RUN={text!r}: matches {len(found)} runs; choose one of {named}")


def _instead(text: str, trials: Mapping[str, Trial]) -> str:
    """Name the arms and seeds of the study that `text` names, or else runs whose names are similar."""
    place = "/".join(text.split("/")[:2])
    if there := [trial for trial in trials.values() if f"{trial.study}/{trial.scale}" == place]:
        arms, seeds = (dict.fromkeys(str(trial[index]) for trial in there) for index in (2, 3))
        return f"; arms there are {', '.join(arms)}, seeds {', '.join(seeds)}"
    names = {name: full for full, trial in trials.items() for name in trial.names()}
    close = dict.fromkeys(names[name] for name in get_close_matches(text, names, n=MOST_NAMED, cutoff=0.7))
    return f"; did you mean {' or '.join(close)}?" if close else "; `dsv2 ls` lists them"


def list_trials() -> list[Trial]:
    """Return the trials that the records of all studies list; their folders may be missing."""
    root = runs_root()
    return [trial for path in sorted(root.glob(f"*/*/{STUDY}")) for trial in _trials(path.parent)]


def _trials(place: Path) -> list[Trial]:
    """Return the trials that the record of a study lists; none if it is missing or damaged.

    Older studies do not list their trials there, so that the configs of the trials are read.
    """
    try:
        record = read_sealed(place / STUDY)
        if "trials" not in record:
            labels = [_labels(path) for path in sorted(place.glob(f"{TRIALS}/*/{CONFIG}"))]
        else:
            labels = [(arm, seed, probe, folder) for arm, seed, probe, folder in record["trials"]]
        return [_trial(place, *label) for label in labels]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _trial(place: Path, arm: Any, seed: Any, probe: Any, folder: Any) -> Trial:
    """Return a listed trial. Raises ValueError if it cannot be one."""
    texts = (arm, folder) if probe is None else (arm, probe, folder)
    if not all(isinstance(text, str) for text in texts) or type(seed) is not int or not FINGERPRINT.fullmatch(folder):
        raise ValueError("not a trial")
    return Trial(place.parent.name, place.name, arm, seed, probe, place / TRIALS / folder)


def _labels(config: Path) -> tuple[str, int, str | None, str]:
    """Return arm, seed, probe and folder of a trial from its config."""
    values = read_yaml(config)
    return values["arm"], values["seed"], values.get("probe"), config.parent.name
