"""Study files: a question, the arms that answer it, and the budgets at which they are compared.

`configs/sweep/<name>.yaml`, `configs/scales/<name>.yaml` and `configs/probes/<name>.yaml`, each validated by itself;
`plan` checks them together.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dsv2.accounting.paper_tables import PAPER_TABLES
from dsv2.composition import override
from dsv2.config import CONFIG_DIR, NAME, ConfigBase, ConfigError, structure
from dsv2.metrics import BUDGETS, METRICS, whole_of
from dsv2.storage.values import parse_yaml, read_yaml

SUFFIXES = (".yaml", ".yml")
FOLDERS = {"sweep": "sweep", "scale": "scales", "probe": "probes"}  # Hydra would take a folder "scale" for a group
SHARED = ("budgets", "judged")  # folders of the files that a study may list in its `defaults`


@dataclass(frozen=True, kw_only=True)
class Arm(ConfigBase):
    """One side of the comparison."""

    about: str
    overrides: tuple[str, ...] = ()
    baseline: str | None = None  # the arm's own baseline; None: the study's
    size: str | None = None  # one of the scale's sizes; None: the scale's default model
    differs: tuple[str, ...] = ()  # budgets that only this arm does not hold equal
    scales: dict[str, tuple[str, ...]] = field(default_factory=dict)  # scale -> overrides of this arm at that scale
    # The arm from whose trial of the same seed this one starts, with its overrides before those above; None: no arm.
    init_from: str | None = None
    # Keys of the run that name another one -> the arm whose trial of the same seed that is, as a reward model's.
    reads: dict[str, str] = field(default_factory=dict)
    seed_offset: int = 0  # added to every seed: arms that differ in nothing else form an A/A test
    # The arm of `lr_from` at whose learning rate this one is trained, or at the best of those that differ from it in
    # nothing but the rate; None: the rate of the scale, or of the overrides.
    lr_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class StudyFile(ConfigBase):
    """`configs/sweep/<name>.yaml`."""

    name: str | None = None  # name of the results folder; None: that of the file
    question: str
    prediction: str
    metric: str  # the metric that answers the question
    judged: dict[str, Literal["lower", "higher"]]  # metrics of the report -> which direction is better
    equal: tuple[str, ...]  # budgets held within 1% of the baseline's
    seeds: int  # minimum number of paired seeds for the claim
    baseline: str
    arms: dict[str, Any] | None = None  # name -> Arm
    grid: dict[str, tuple[Any, ...]] | None = None  # instead of arms: override key -> levels, each combination an arm
    differs: tuple[str, ...] = ()  # budgets that may differ by more
    adjust: dict[str, int] = field(default_factory=dict)  # model key -> step by which the solver may change it
    probes: tuple[str, ...] = ()  # tasks that every arm is also trained on, `configs/probes/<name>.yaml`
    published: str | None = None  # the published result that the study mirrors
    paper_table: str | None = None  # the published table that it mirrors, a key of `accounting.paper_tables`
    shows_at: str | None = None  # tokens and seeds at which the effect is expected, and why
    data: tuple[str, ...] = ()  # overrides that choose corpus and benchmarks, applied before `base`
    base: tuple[str, ...] = ()  # overrides shared by all arms
    scales: dict[str, tuple[str, ...]] = field(default_factory=dict)  # scale -> overrides of this study at that scale
    contrasts: tuple[Any, ...] | None = None  # what gets a verdict, `contrasts.Declared`; None: every arm in `metric`
    looks: tuple[int, ...] | None = None  # planned numbers of seeds at each look; None: one look, at the scale's seeds
    margin: dict[str, float] | None = None  # without contrasts: metric -> largest difference that does not matter
    lr_from: str | None = None  # the study, run at the same scale, that says which learning rate suits each arm
    lr_curves: dict[str, Any] | None = None  # what it said, arm -> `rates.Curve`; part of stored definitions alone

    def __post_init__(self) -> None:
        self.require(self.seeds >= 2, "seeds", "at least 2: one seed gives no interval and supports no claim")
        self.require(self.seeds <= 1000, "seeds", "at most 1000")
        self.require((self.arms is None) != (self.grid is None), "arms", "either arms or a grid")
        for levels in (self.grid or {}).values():
            distinct = levels and len(set(map(str, levels))) == len(levels)
            self.require(bool(distinct), "grid", "at least one level for each key, all distinct")
            plain = all(isinstance(level, str | int | float) for level in levels)  # what can name an arm
            self.require(plain, "grid", "levels that are text, numbers or booleans; arms can set null and lists")
        self.require(len(self.arms or self.levels()) >= 2, "arms", "at least two")
        self.require(self.metric in self.judged, "metric", f"one of the judged metrics, {', '.join(self.judged)}")
        unknown = [metric for metric in self.judged if metric not in METRICS and whole_of(metric) is None]
        self.require(not unknown, "judged", f"metrics that runs log; not {', '.join(unknown)}")
        self.require(set(self.equal) <= set(BUDGETS), "equal", f"some of {', '.join(BUDGETS)}")
        self.require(set(self.differs) <= set(BUDGETS), "differs", f"some of {', '.join(BUDGETS)}")
        both = sorted(set(self.equal) & set(self.differs))
        self.require(not both, "differs", f"none that `equal` names; {', '.join(both)} is in both")
        unknown = sorted(set(self.margin or {}) - set(self.judged))
        self.require(not unknown, "margin", f"judged metrics only; not {', '.join(unknown)}")
        fits = all(0 < margin < math.inf for margin in (self.margin or {}).values())
        self.require(fits, "margin", "positive and finite")
        looks = self.looks or (2,)
        grows = all(low < high for low, high in itertools.pairwise((1, *looks, 1001))) and self.looks != ()
        self.require(grows, "looks", "numbers of seeds from 2 to 1000, each more than the one before")
        _require_scales("scales", self.scales)
        self.require(
            self.lr_from is None or self.arms is not None, "lr_from", "null for a grid, whose arms have no lr_of"
        )
        known = self.paper_table is None or self.paper_table in PAPER_TABLES
        self.require(known, "paper_table", f"one of {', '.join(PAPER_TABLES)}")
        self.require(self.paper_table is None or self.published is None, "published", "null if paper_table is given")

    @property
    def published_text(self) -> str | None:
        """The published result, in a sentence."""
        return self.published if self.paper_table is None else PAPER_TABLES[self.paper_table].text()

    def levels(self) -> dict[str, dict[str, Any]]:
        """Map each arm of a grid to its level of each factor; empty without a grid."""
        if self.grid is None:
            return {}
        cells = {}
        for combination in itertools.product(*self.grid.values()):
            levels = dict(zip(self.grid, combination, strict=True))
            cells["_".join(_level_name(key, level) for key, level in levels.items())] = levels
        return cells

    def all_arms(self) -> dict[str, Arm]:
        """Return all arms, including those of a grid, validated. Raises `ConfigError`."""
        if self.grid is not None:
            arms = {
                name: Arm(about=", ".join(f"{k} {v}" for k, v in levels.items()), overrides=_overrides(levels))
                for name, levels in self.levels().items()
            }
        else:
            arms = {name: _arm(name, node) for name, node in (self.arms or {}).items()}
        self.require(self.baseline in arms, "baseline", f"one of the arms, {', '.join(arms)}")
        for name, arm in arms.items():
            if not NAME.fullmatch(name):
                raise ConfigError("arms", name, "names of letters, digits and . _ + -")
            if name == "null":
                raise ConfigError("arms", name, "another name; on a command line, arm=null means none")
            _require_scales(f"arms.{name}.scales", arm.scales)
            if (arm.lr_of is not None) > (self.lr_from is not None):
                raise ConfigError(f"arms.{name}.lr_of", arm.lr_of, "null without lr_from, a study with such an arm")
            at, other = f"arms.{name}.baseline", arm.baseline
            if other is not None and (other not in arms or arms[other].baseline not in (None, other)):
                raise ConfigError(at, other, f"an arm that has no other baseline itself, one of {', '.join(arms)}")
            at, chain = f"arms.{name}.init_from", [name]
            while (first := arms[chain[-1]].init_from) is not None:
                if first not in arms or first in chain:
                    raise ConfigError(
                        at, arm.init_from, f"an arm that does not start from this one, of {', '.join(arms)}"
                    )
                chain.append(first)
            for key, first in arm.reads.items():
                if first not in arms or first == name:
                    raise ConfigError(f"arms.{name}.reads.{key}", first, f"another arm, of {', '.join(arms)}")
            if not set(arm.differs) <= set(BUDGETS):
                raise ConfigError(f"arms.{name}.differs", list(arm.differs), f"some of {', '.join(BUDGETS)}")
        if self.lr_from is not None and all(arm.lr_of is None for arm in arms.values()):
            raise ConfigError("lr_from", self.lr_from, "null unless an arm names one of its arms with lr_of")
        return arms


@dataclass(frozen=True, kw_only=True)
class ScaleFile(ConfigBase):
    """`configs/scales/<name>.yaml`."""

    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    sizes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name -> overrides: models of other sizes
    probe: tuple[str, ...] = ()  # overrides for training on probes


@dataclass(frozen=True, kw_only=True)
class Probe(ConfigBase):
    """`configs/probes/<name>.yaml`: a synthetic task that shows what an architecture can do."""

    about: str
    overrides: tuple[str, ...]


def _level_name(key: str, level: Any) -> str:
    """Name a level: mha for model/attention=mha, expert0.003 for loss.expert=0.003."""
    return str(level) if "/" in key else f"{key.rpartition('.')[2]}{level}"


def _overrides(levels: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={v}" if isinstance(v, str) and "${" in v else override(key, v) for key, v in levels.items())


def names(group: str) -> list[str]:
    """Return the names of all files of a group: `sweep`, `scale` or `probe`."""
    return [path.stem for path in _yaml_files(FOLDERS[group])]


def _yaml_files(folder: str) -> list[Path]:
    return sorted((CONFIG_DIR / folder).glob("*.yaml"))


def definition(study: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name of a study and the contents of its file.

    `study` is a name in `configs/sweep`, the path of a YAML file (.yaml or .yml), or the contents of such a file with
    its `name`. Raises `ConfigError`.
    """
    if isinstance(study, Path):
        study = str(study)
    if isinstance(study, str):
        path = Path(study)
        node = mapping(path, study) if path.suffix in SUFFIXES else read("sweep", study)
        name = node.get("name") or path.stem if path.suffix in SUFFIXES else study
    else:
        if not isinstance(study, Mapping):
            raise ConfigError("study", study, "a study's name, the path of its YAML file, or a dictionary")
        name = study.get("name")
        try:
            copied = parse_yaml(yaml.safe_dump(dict(study), sort_keys=False))
        except (yaml.representer.RepresenterError, RecursionError):
            raise ConfigError("study", name, "what a YAML file could hold: text, numbers, lists and mappings") from None
        except ValueError as error:
            raise ConfigError("study", name, f"what a YAML file could hold; {error}") from None
        node = _with_shared(copied, "the dictionary")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError("name", name, "a study's name: letters, digits and . _ + -")
    return name, node


def read(group: str, name: str) -> dict[str, Any]:
    """Return the contents of a group's file, with its shared parts. Raises `ConfigError`."""
    if name not in names(group):
        raise ConfigError(group, name, f"choose one of {', '.join(names(group))}")
    return mapping(CONFIG_DIR / FOLDERS[group] / f"{name}.yaml", name)


def _require_scales(key: str, scales: Mapping[str, Any]) -> None:
    if unknown := sorted(set(scales) - set(names("scale"))):
        raise ConfigError(key, unknown, f"scales, of {', '.join(names('scale'))}")


def _arm(name: str, node: Any) -> Arm:
    if not isinstance(node, dict):
        raise ConfigError(f"arms.{name}", node, "a mapping with about and overrides")
    arm: Arm = structure(node, Arm, f"arms.{name}")
    return arm


def mapping(path: Path, name: str) -> dict[str, Any]:
    """Return the contents of a YAML file, merged over the shared files in its `defaults`. Raises `ConfigError`."""
    return _with_shared(_mapping(path, name), str(path))


def _with_shared(node: dict[str, Any], where: str) -> dict[str, Any]:
    """Merge the files of the `defaults` list, if any, in order, with `_self_` last unless the list says otherwise.

    The rules are Hydra's, but its compose would also accept search paths, interpolations and packages.
    """
    if "defaults" not in node:
        return node
    shared = {f"/{file.parent.name}/{file.stem}": file for folder in SHARED for file in _yaml_files(folder)}
    named = node["defaults"]
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError("defaults", named, f"a list of some of {', '.join(shared)}, in {where}")
    for name in named:
        if (name not in shared and name != "_self_") or named.count(name) > 1:
            raise ConfigError("defaults", name, f"some of {', '.join(shared)}, without duplicates, in {where}")
    own = {key: value for key, value in node.items() if key != "defaults"}
    merged: dict[str, Any] = {}
    for name in named if "_self_" in named else [*named, "_self_"]:
        merged = _merged(merged, own if name == "_self_" else _mapping(shared[name], name))
    return merged


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `upper` over `lower`: mappings are merged, anything else, including lists, is replaced."""
    merged = dict(lower)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _mapping(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError("sweep", name, f"a study's name, or the path of a YAML file; there is no {path}")
    try:
        node = read_yaml(path)
    except ValueError as error:
        raise ConfigError("sweep", name, f"YAML; {error}") from None
    if not isinstance(node, dict):
        raise ConfigError("sweep", name, f"{path} must hold a mapping")
    return node
