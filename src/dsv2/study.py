"""Study files: a question, arms that answer it, and the budgets at which they are compared.

`configs/sweep/<name>.yaml` and `configs/scales/<name>.yaml` become one typed run for every arm. Whatever would make the
comparison unfair is refused here: budgets that differ without saying so, arms that are the same, a claim on one seed.
"""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from dsv2.analysis.accounting import account
from dsv2.analysis.matching import match
from dsv2.config import CONFIG_DIR, ConfigBase, ConfigError, plain, structure
from dsv2.metrics import BUDGETS, METRICS, MODEL_BUDGETS
from dsv2.run import Run, load

EQUAL_WITHIN = 0.01  # largest relative difference that still counts as held equal
ARM_NAME = re.compile(r"\w[\w.+-]*")  # it becomes a part of file names
QUIET = ("trainer.progress=false",)  # a study shows one bar for all its trials


@dataclass(frozen=True, kw_only=True)
class Arm(ConfigBase):
    """One side of the comparison."""

    about: str
    overrides: tuple[str, ...] = ()
    baseline: str | None = None  # its own baseline, where it is not the study's
    size: str | None = None  # one of the scale's sizes; None: the scale's own model
    differs: tuple[str, ...] = ()  # budgets that this arm alone does not hold equal
    scales: dict[str, tuple[str, ...]] = field(default_factory=dict)  # scale -> overrides of this arm there
    seed_offset: int = 0  # added to every seed: arms that differ in nothing else are an A/A test


@dataclass(frozen=True, kw_only=True)
class StudyFile(ConfigBase):
    """`configs/sweep/<name>.yaml`."""

    question: str
    prediction: str
    metric: str  # the one the question is about
    judged: dict[str, Literal["lower", "higher"]]  # every metric that gets a verdict, and which direction is better
    equal: tuple[str, ...]  # budgets within 1% of the baseline's
    seeds: int  # the fewest paired seeds that the claim needs
    baseline: str
    arms: dict[str, Any] | None = None  # name -> Arm
    grid: dict[str, tuple[Any, ...]] | None = None  # instead of arms: override key -> levels, every combination an arm
    differs: tuple[str, ...] = ()  # budgets that may be further apart
    adjust: dict[str, int] = field(default_factory=dict)  # what the solver may change, in steps, to hold `equal`
    probes: tuple[str, ...] = ()  # tasks that every arm is also trained on, `configs/probes/<name>.yaml`
    published: str | None = None
    shows_at: str | None = None  # tokens and seeds at which the effect is expected, and how that is known
    base: tuple[str, ...] = ()  # overrides that all arms share
    scales: dict[str, tuple[str, ...]] = field(default_factory=dict)  # scale -> overrides of this study there
    margin: dict[str, float] | None = None  # metric -> difference that would not matter

    def __post_init__(self) -> None:
        self.require(self.seeds >= 2, "seeds", "at least 2: one seed gives no interval, so no claim can rest on it")
        self.require(self.seeds <= 1000, "seeds", "at most 1000")
        self.require((self.arms is None) != (self.grid is None), "arms", "either arms or a grid")
        for levels in (self.grid or {}).values():
            once = levels and len(set(map(str, levels))) == len(levels)
            self.require(bool(once), "grid", "at least one level for each key, each once")
        self.require(len(self.arms or self.levels()) >= 2, "arms", "at least two")
        self.require(self.metric in self.judged, "metric", f"one of the judged metrics, {', '.join(self.judged)}")
        unknown = [metric for metric in self.judged if metric not in METRICS and not metric.startswith("val/bpb_")]
        self.require(not unknown, "judged", f"metrics that runs log; not {', '.join(unknown)}")
        self.require(set(self.equal) <= set(BUDGETS), "equal", f"some of {', '.join(BUDGETS)}")
        self.require(set(self.differs) <= set(BUDGETS), "differs", f"some of {', '.join(BUDGETS)}")
        both = sorted(set(self.equal) & set(self.differs))
        self.require(not both, "differs", f"none that `equal` names; {', '.join(both)} is in both")
        unknown = sorted(set(self.margin or {}) - set(self.judged))
        self.require(not unknown, "margin", f"judged metrics only; not {', '.join(unknown)}")
        fits = all(0 < margin < math.inf for margin in (self.margin or {}).values())
        self.require(fits, "margin", "positive and finite")
        _require_scales("scales", self.scales)

    def levels(self) -> dict[str, dict[str, Any]]:
        """Arm to the level of each factor, for a grid; empty without one."""
        if self.grid is None:
            return {}
        found = {}
        for combination in itertools.product(*self.grid.values()):
            levels = dict(zip(self.grid, combination, strict=True))
            found["_".join(_level_name(key, level) for key, level in levels.items())] = levels
        return found

    def all_arms(self) -> dict[str, Arm]:
        """The arms, of a grid too, each checked. Raises `ConfigError`."""
        if self.grid is not None:
            arms = {
                name: Arm(about=", ".join(f"{k} {v}" for k, v in levels.items()), overrides=_overrides(levels))
                for name, levels in self.levels().items()
            }
        else:
            arms = {name: _arm(name, node) for name, node in (self.arms or {}).items()}
        self.require(self.baseline in arms, "baseline", f"one of the arms, {', '.join(arms)}")
        for name, arm in arms.items():
            if not ARM_NAME.fullmatch(name):
                raise ConfigError("arms", name, "names of letters, digits and . _ + -")
            _require_scales(f"arms.{name}.scales", arm.scales)
            at, other = f"arms.{name}.baseline", arm.baseline
            if other is not None and (other not in arms or arms[other].baseline not in (None, other)):
                raise ConfigError(at, other, f"an arm that has no other baseline itself, one of {', '.join(arms)}")
            if not set(arm.differs) <= set(BUDGETS):
                raise ConfigError(f"arms.{name}.differs", list(arm.differs), f"some of {', '.join(BUDGETS)}")
        return arms


@dataclass(frozen=True, kw_only=True)
class ScaleFile(ConfigBase):
    """`configs/scales/<name>.yaml`."""

    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    sizes: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name -> overrides: models beside the scale's own
    probe: tuple[str, ...] = ()  # overrides of the probes' trainings


@dataclass(frozen=True, kw_only=True)
class Probe(ConfigBase):
    """`configs/probes/<name>.yaml`: a synthetic task that shows what an architecture can do."""

    about: str
    overrides: tuple[str, ...]


class Plan:
    """A study at a scale: its arms as typed runs, at budgets that are equal where the file says so."""

    def __init__(self, study: str, scale: str, overrides: Sequence[str] = ()) -> None:
        """`study` is a name in `configs/sweep` or the path of a YAML file. Raises `ConfigError`."""
        path = Path(study)
        self.name = path.stem if path.suffix == ".yaml" else study
        self.scale, self.overrides = scale, tuple(overrides)
        self.file: StudyFile = structure(_mapping(path, study) if path.suffix else _read("sweep", study), StudyFile)
        self._scale: ScaleFile = structure(_read("scale", scale), ScaleFile)
        self.probes = {name: structure(_read("probe", name), Probe) for name in self.file.probes}
        self.arms = self.file.all_arms()
        self.configs: dict[str, Run.Config] = {}
        self.changes: dict[str, dict[str, int]] = {}  # arm -> what the solver changed, under `model.`
        for name in sorted(self.arms, key=lambda arm: self.baseline_of(arm) != arm):  # baselines first
            self.configs[name], self.changes[name] = self._solve(name)
        self.configs = {name: self.configs[name] for name in self.arms}
        self._on_probes: dict[tuple[str, str], Run.Config] = {}
        for probe in self.probes:
            self.run_of(self.file.baseline, probe)  # a probe that is wrong is refused here; the other arms' can wait
        self._refuse_duplicates()
        self._refuse_unequal()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The scale's seeds, and more where the study's claim needs more."""
        seeds = list(self._scale.seeds)
        more = (seed for seed in itertools.count() if seed not in seeds)
        return tuple(seeds + [next(more) for _ in range(self.file.seeds - len(seeds))])

    def baseline_of(self, arm: str) -> str:
        """The arm that this one is compared with; a baseline's is itself."""
        return self.arms[arm].baseline or (arm if self._is_baseline(arm) else self.file.baseline)

    def _is_baseline(self, arm: str) -> bool:
        return arm == self.file.baseline or any(other.baseline == arm for other in self.arms.values())

    def overrides_of(self, arm: str, probe: str | None = None) -> list[str]:
        """What this arm overrides before the solver, later ones winning."""
        node, scale = self.arms[arm], self._scale
        if node.size is not None and node.size not in scale.sizes:
            valid = f"a size of scale {self.scale}, {', '.join(scale.sizes) or 'which has none'}"
            raise ConfigError(f"arms.{arm}.size", node.size, valid)
        return [
            *scale.overrides,
            *self.file.scales.get(self.scale, ()),
            *(scale.sizes[node.size] if node.size is not None else ()),
            *self.file.base,
            *node.overrides,
            *node.scales.get(self.scale, ()),
            *QUIET,
            *((*self.probes[probe].overrides, "benchmarks=none", *scale.probe) if probe is not None else ()),
            *self.overrides,
        ]

    def run_of(self, arm: str, probe: str | None = None) -> Run.Config:
        """The typed run of an arm, or of its training on a probe: with the same changes of the solver."""
        if probe is None:
            return self.configs[arm]
        if (arm, probe) not in self._on_probes:
            self._on_probes[arm, probe] = self._load(arm, probe, self.changes[arm])
        return self._on_probes[arm, probe]

    def words(self, arm: str, probe: str | None = None) -> list[str]:
        """All overrides of an arm, for `python -m dsv2.train`. Raises `ConfigError` for names that are not there."""
        if arm not in self.arms:
            raise ConfigError("arm", arm, f"one of {', '.join(self.arms)}")
        if probe is not None and probe not in self.probes:
            raise ConfigError("probe", probe, f"one of this study's, {', '.join(self.probes) or 'which has none'}")
        return [*self.overrides_of(arm, probe), *self._solved(self.changes[arm])]

    def _solved(self, changes: Mapping[str, int]) -> list[str]:
        return [f"model.{key}={value}" for key, value in changes.items()]

    def _load(self, arm: str, probe: str | None, changes: Mapping[str, int]) -> Run.Config:
        run = load([*self.overrides_of(arm, probe), *self._solved(changes)])
        for name in ("seed", "study", "arm", "probe"):  # which trial it is would be lost, and trials coincide
            if value := getattr(run, name):
                raise ConfigError(name, value, "nothing that a study overrides; seeds=[0,1] asks for seeds")
        return replace(run, study=self.name, scale=self.scale, arm=arm, probe=probe)

    def _solve(self, arm: str) -> tuple[Run.Config, dict[str, int]]:
        """The arm with its budgets made equal to its baseline's, and what had to change for it."""
        run, baseline = self._load(arm, None, {}), self.baseline_of(arm)
        held = [b for b in self.file.equal if b in MODEL_BUDGETS and b not in self.arms[arm].differs]
        if arm == baseline or not held or not self.file.adjust:
            return run, {}
        reference, context = self.configs[baseline], run.trainer.sequence_length
        targets = {budget: getattr(account(reference.model, context=context), budget) for budget in held}
        try:
            matched = match(run.model, targets, self.file.adjust, context=context, within=EQUAL_WITHIN)
        except ConfigError as error:
            raise ConfigError(f"arms.{arm}.{error.key}", error.value, error.valid) from None
        return (self._load(arm, None, matched.changes) if matched.changes else run), matched.changes

    def _refuse_duplicates(self) -> None:
        seen: dict[str, str] = {}
        for arm, run in self.configs.items():
            text = json.dumps([plain(run, identity=True), self.arms[arm].seed_offset], sort_keys=True)
            if text in seen:
                raise ConfigError(f"arms.{arm}", list(self.arms[arm].overrides), f"it is the same run as {seen[text]}")
            seen[text] = arm

    def _refuse_unequal(self) -> None:
        rows = {row["arm"]: row for row in self.budgets()}
        for arm, row in rows.items():
            baseline = self.baseline_of(arm)
            for budget in BUDGETS:
                if budget in self.file.differs or budget in self.arms[arm].differs:
                    continue
                value, reference = row[budget], rows[baseline][budget]
                if abs(value - reference) > EQUAL_WITHIN * reference:
                    held = "`equal` names it" if budget in self.file.equal else "`differs` does not name it"
                    valid = f"within {EQUAL_WITHIN:.0%} of {baseline}'s {reference:,}, since {held}"
                    raise ConfigError(f"arms.{arm}.{budget}", value, valid)

    def budgets(self) -> list[dict[str, Any]]:
        """One row an arm: its accounting, tokens, steps, seeds, and the largest mismatch of what is held equal."""
        rows: list[dict[str, Any]] = []
        for arm, run in self.configs.items():
            result, batches = account(run.model, context=run.trainer.sequence_length), run.trainer.batches()
            rows.append(
                {"arm": arm, "about": self.arms[arm].about}
                | {name: getattr(result, name) for name in MODEL_BUDGETS}
                | {"tokens": batches.total_tokens, "steps": batches.num_steps, "seeds": len(self.seeds)}
            )
        found = {row["arm"]: row for row in rows}
        for row in rows:
            reference = found[self.baseline_of(row["arm"])]
            held = [budget for budget in self.file.equal if budget not in self.arms[row["arm"]].differs]
            row["mismatch"] = max((abs(row[b] / reference[b] - 1) for b in held), default=0.0)
        return rows


def _level_name(key: str, level: Any) -> str:
    """mha for model/attention=mha, expert0.003 for loss.expert=0.003."""
    return str(level) if "/" in key else f"{key.rpartition('.')[2]}{level}"


def _overrides(levels: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in levels.items())


FOLDERS = {"sweep": "sweep", "scale": "scales", "probe": "probes"}  # Hydra would take scale= for a group of its own


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / FOLDERS[group]).glob("*.yaml"))


def _read(group: str, name: str) -> dict[str, Any]:
    if name not in _names(group):
        raise ConfigError(group, name, f"choose one of {', '.join(_names(group))}")
    return _mapping(CONFIG_DIR / FOLDERS[group] / f"{name}.yaml", name)


def _require_scales(key: str, scales: Mapping[str, Any]) -> None:
    if unknown := sorted(set(scales) - set(_names("scale"))):
        raise ConfigError(key, unknown, f"scales, of {', '.join(_names('scale'))}")


def _arm(name: str, node: Any) -> Arm:
    if not isinstance(node, dict):
        raise ConfigError(f"arms.{name}", node, "a mapping with about and overrides")
    arm: Arm = structure(node, Arm, f"arms.{name}")
    return arm


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: a copied arm that kept its name would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            again = ", ".join(sorted({str(key) for key in keys if keys.count(key) > 1}))
            raise yaml.constructor.ConstructorError(None, None, f"{again} stands there twice", node.start_mark)
        return found


def _mapping(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError("sweep", name, f"a study's name, or the path of a YAML file; there is no {path}")
    try:
        node = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("sweep", name, f"YAML; {path}: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise ConfigError("sweep", name, f"{path} must hold a mapping")
    return node
