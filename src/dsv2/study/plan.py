"""A study at a scale: its arms as typed runs, at budgets held equal as its file says.

Unfair comparisons are refused: budgets that differ without being declared in `differs`, and identical arms.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsv2.accounting.account import account
from dsv2.accounting.matching import match
from dsv2.composition import checked, override
from dsv2.config import ConfigBase, ConfigError, digest, plain, structure
from dsv2.metrics import BUDGETS, MODEL_BUDGETS
from dsv2.storage.rundir import runs_root
from dsv2.study.contrasts import declared
from dsv2.study.files import Probe, ScaleFile, StudyFile, definition, read
from dsv2.study.rates import Curve, curves_of, families, node_of, read_curve
from dsv2.study.words import LABELS, require_allowed
from dsv2.training.origin import ADOPTED, KEY, Origin, require_shapes
from dsv2.training.run import Run, folder_of, load

EQUAL_WITHIN = 0.01  # largest relative difference that still counts as held equal
EVALUATED = "trainer.tokens=0"  # of an arm that only evaluates another's weights: also on probes
QUIET = ("trainer.progress=false",)  # a study shows one bar for all its trials


class Plan:
    """A study at a scale: its arms as typed runs, with budgets made equal by the solver."""

    def __init__(self, study: str | Path | Mapping[str, Any], scale: str, overrides: Sequence[str] = ()) -> None:
        """Plan a study, given by name, path or contents (see `files.definition`).

        Raises `ConfigError`.
        """
        self.name, self.node = definition(study)
        self.scale, self.overrides = scale, tuple(overrides)
        self.file: StudyFile = structure(self.node, StudyFile)
        self._scale: ScaleFile = structure(read("scale", scale), ScaleFile)
        self.probes = {name: structure(read("probe", name), Probe) for name in self.file.probes}
        self.arms = self.file.all_arms()
        self.contrasts = declared(
            self.file.contrasts,
            arms=list(self.arms),
            baseline_of=self.baseline_of,
            judged=self.file.judged,
            metric=self.file.metric,
            margins=self.file.margin or {},
        )
        self.untuned: ConfigError | None = None  # why `lr_from` does not say yet which learning rates are the best
        self._take_rates()
        self.configs: dict[str, Run.Config] = {}
        self.adjusted: dict[str, dict[str, tuple[int, int]]] = {}  # arm -> keys under `model.` -> old and new values
        for name in self.arms:
            self._settle(name)
        self.configs = {name: self.configs[name] for name in self.arms}
        self._on_probes: dict[tuple[str, str], Run.Config] = {}
        for probe in self.probes:
            self.run_of(self.file.baseline, probe)  # refuses an invalid probe early; other arms follow lazily
        self._refuse_duplicates()
        self._refuse_unequal()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds to run: those that are planned."""
        return self.planned_seeds

    @property
    def changes(self) -> dict[str, dict[str, int]]:
        """What the solver changed: arm -> keys under `model.` -> new values."""
        return {arm: {key: new for key, (_, new) in made.items()} for arm, made in self.adjusted.items()}

    @property
    def decided_at(self) -> int:
        """The number of seeds at which the study is to be decided: of its last planned look, else that it plans."""
        return self.file.looks[-1] if self.file.looks else len(self.planned_seeds)

    @property
    def planned_seeds(self) -> tuple[int, ...]:
        """The scale's seeds, extended to the number that the study needs."""
        seeds = list(self._scale.seeds)
        unused = (seed for seed in itertools.count() if seed not in seeds)
        return tuple(seeds + [next(unused) for _ in range(self.file.seeds - len(seeds))])

    def baseline_of(self, arm: str) -> str:
        """Return the arm that this one is compared with; for a baseline, itself."""
        return self.arms[arm].baseline or (arm if self._is_baseline(arm) else self.file.baseline)

    def _is_baseline(self, arm: str) -> bool:
        return arm == self.file.baseline or any(other.baseline == arm for other in self.arms.values())

    def overrides_of(self, arm: str, probe: str | None = None) -> list[str]:
        """Return the overrides of this arm before the solver; later ones take precedence."""
        scale, size = self._scale, self._size(arm)
        if size is not None and size not in scale.sizes:
            valid = f"a size of scale {self.scale}, {', '.join(scale.sizes) or 'which has none'}"
            raise ConfigError(f"arms.{arm}.size", size, valid)
        return [
            *scale.overrides,
            *self.file.scales.get(self.scale, ()),
            *(scale.sizes[size] if size is not None else ()),
            *self.file.data,
            *self.file.base,
            *self._own_overrides(arm),
            *QUIET,
            *((*self.probes[probe].overrides, "benchmarks=none", *scale.probe) if probe is not None else ()),
            *(word for word in self.arms[arm].overrides if probe is not None and word == EVALUATED),
            *self.overrides,
        ]

    # ---- learning rates ----------------------------------------------------------------------------------------------

    def _take_rates(self) -> None:
        """Look up the learning rates that `lr_from` found, unless the stored definition has them already.

        If that study has not finished at this scale, its arms have the rates of the scale, and `require_rates` raises.
        """
        if self.file.lr_from is not None and self.file.lr_curves is None:
            source = Plan(self.file.lr_from, self.scale)
            if source.file.lr_from is not None:
                raise ConfigError("lr_from", self.file.lr_from, "a study that has no lr_from itself")
            named = {arm: spec.lr_of for arm, spec in self.arms.items() if spec.lr_of is not None}
            found = {arm: source.curve(of, f"arms.{arm}.lr_of") for arm, of in named.items()}
            curves = {arm: curve for arm, curve in found.items() if curve is not None}
            if len(curves) == len(found):
                self.node = {**self.node, "lr_curves": {arm: node_of(curve) for arm, curve in curves.items()}}
                self.file = structure(self.node, StudyFile)
            else:
                command = f"python -m ablations.run sweep={self.file.lr_from} scale={self.scale}"
                valid = f"a study that has finished at scale {self.scale}; run {command} first"
                self.untuned = ConfigError("lr_from", self.file.lr_from, valid)
        self.curves: dict[str, Curve] = curves_of(self.file.lr_curves or {})  # of arms with `lr_of`

    def require_rates(self) -> None:
        """Raise ConfigError unless the learning rate of every arm is known."""
        if self.untuned is not None:
            raise self.untuned

    def families(self) -> dict[str, dict[float, str]]:
        """Return the arms that differ in their learning rate alone; see `rates.families`."""
        return families(self.configs, {name: arm.seed_offset for name, arm in self.arms.items()})

    def curve(self, arm: str, at: str) -> Curve | None:
        """Return the metric of this study over the learning rate, of `arm` and those that differ from it in that alone.

        It is of the stored trials of the planned seeds; None if one has not finished. Raises ConfigError at the key
        `at` if there is no such arm, or none that differs from it only so.
        """
        family = next((item for item in self.families().items() if arm in item[1].values()), None)
        if family is None:
            valid = f"an arm of {self.name} beside others that differ from it in nothing but the learning rate"
            raise ConfigError(at, arm, valid)
        name, arms = family
        root = runs_root() / self.name / self.scale / "trials"
        folders = {
            rate: [folder_of(self.trial(one, seed, None, root), root) for seed in self.planned_seeds]
            for rate, one in arms.items()
        }
        return read_curve(name, folders, self.file.metric, self.file.judged[self.file.metric])

    def _size(self, arm: str) -> str | None:
        """Return the size of an arm: its own, else that of the arm it starts from."""
        spec = self.arms[arm]
        return spec.size if spec.size is not None or spec.init_from is None else self._size(spec.init_from)

    def _own_overrides(self, arm: str) -> list[str]:
        """Return what is special to an arm: that of the arm it starts from, then its own.

        Of what it inherits, keys of a part whose group it chooses anew are left out, as after `objective=none`.
        """
        spec = self.arms[arm]
        own = [*spec.overrides, *spec.scales.get(self.scale, ())]
        chosen = tuple(f"{word.key_or_group}." for word in checked(own) if word.key_or_group in ADOPTED)
        inherited = [] if spec.init_from is None else self._own_overrides(spec.init_from)
        kept = [word for word in inherited if not (chosen and word.lstrip("+").startswith(chosen))]
        tuned = [override("optim.lr", self.curves[arm].best), "optim.lr_factor=1.0"] if arm in self.curves else []
        return [*kept, *own, *tuned]

    def run_of(self, arm: str, probe: str | None = None) -> Run.Config:
        """Return the typed run of an arm, or of its training on a probe with the same solver changes."""
        if probe is None:
            return self.configs[arm]
        if (arm, probe) not in self._on_probes:
            self._on_probes[arm, probe] = self._load(arm, probe, self.changes[arm])
        return self._on_probes[arm, probe]

    def trial(self, arm: str, seed: int, probe: str | None, root: Path) -> Run.Config:
        """Return the run of an arm with a seed, whose trial is under `root`, as is that from which it may start."""
        run = self.run_of(arm, probe)
        for key, first in self.named_by(arm).items():
            origin = self.trial(first, seed, probe, root)
            run = with_origin(run, key, from_trial(origin, folder_of(origin, root), origin.fingerprint()))
        return replace(run, seed=seed + self.arms[arm].seed_offset)

    def named_by(self, arm: str) -> dict[str, str]:
        """Return the arms whose trials an arm's run names: that from whose weights it starts, then what it reads."""
        spec = self.arms[arm]
        return ({} if spec.init_from is None else {KEY: spec.init_from}) | spec.reads

    def words(self, arm: str, probe: str | None = None) -> list[str]:
        """Return all overrides of an arm, for `python -m dsv2.train`. Raises `ConfigError` for unknown names."""
        if arm not in self.arms:
            raise ConfigError("arm", arm, f"one of {', '.join(self.arms)}")
        if probe is not None and probe not in self.probes:
            raise ConfigError("probe", probe, f"one of this study's, {', '.join(self.probes) or 'which has none'}")
        return self._words(arm, probe, self.changes[arm])

    def _words(self, arm: str, probe: str | None, changes: Mapping[str, int]) -> list[str]:
        words = [*self.overrides_of(arm, probe), *(f"model.{key}={value}" for key, value in changes.items())]
        require_allowed(words)
        return words

    def _load(self, arm: str, probe: str | None, changes: Mapping[str, int]) -> Run.Config:
        words, origin = self._words(arm, probe, changes), self.arms[arm].init_from
        words += [override(key, plain(self._named(other, probe))) for key, other in self.arms[arm].reads.items()]
        for word in checked(words):
            if word.key_or_group in ("seed", *LABELS):  # would make trials coincide, or be lost
                valid = "a study sets this itself; use seeds=[0,1] to choose seeds"
                raise ConfigError(word.key_or_group, word.value(), valid)
        labels: dict[str, Any] = {"study": self.name, "scale": self.scale, "arm": arm, "probe": probe}
        if origin is None:
            return replace(load(words), **labels)
        first, start = self.run_of(origin, probe), self._named(origin, probe)
        run = load(words if _starts(words) else [*words, override("init_from", plain(start))])
        require_same_weights(run, first, at=f"arms.{arm}", origin=origin)
        return replace(run, init_from=start, **labels)

    def _named(self, arm: str, probe: str | None) -> Origin.Config:
        """Return what stands for an arm in the run of another; that of a trial is known with its seed."""
        return Origin.Config(run=arm, trial=digest(plain(self.run_of(arm, probe), identity=True)))

    def _settle(self, arm: str, path: tuple[str, ...] = ()) -> None:
        """Load an arm and make its budgets equal to those of its baseline, after what that depends on."""
        if arm in self.configs:
            return
        if arm in path:
            valid = f"arms of which each can be settled before the next, not {' -> '.join((*path, arm))}"
            raise ConfigError(f"arms.{arm}.init_from", self.arms[arm].init_from, valid)
        origin, baseline = self.arms[arm].init_from, self.baseline_of(arm)
        for other in self.arms[arm].reads.values():
            self._settle(other, (*path, arm))
        if origin is not None:
            self._settle(origin, (*path, arm))
            self.adjusted[arm] = self.adjusted[origin]  # its weights have the shapes that the origin's were given
            self.configs[arm] = self._load(arm, None, self.changes[origin])
            return
        if self.file.adjust and baseline != arm:
            self._settle(baseline, (*path, arm))
        self.configs[arm], self.adjusted[arm] = self._solve(arm)

    def _solve(self, arm: str) -> tuple[Run.Config, dict[str, tuple[int, int]]]:
        """Make the arm's budgets equal to its baseline's; return the run and the changes that took, old and new."""
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
        adjusted = {key: (matched.starts[key], new) for key, new in matched.changes.items()}
        return (self._load(arm, None, matched.changes) if adjusted else run), adjusted

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
                    valid = f"within {EQUAL_WITHIN:.0%} of the {reference:,} of {baseline}, since {held}"
                    raise ConfigError(f"arms.{arm}.{budget}", value, valid)

    def tokens_of(self, arm: str) -> int:
        """Return the tokens that an arm is trained on, including those of the arm that it starts from."""
        origin, own = self.arms[arm].init_from, self.configs[arm].trainer.batches().total_tokens
        return own if origin is None else own + self.tokens_of(origin)

    def budgets(self) -> list[dict[str, Any]]:
        """Return one row per arm: accounting, tokens, steps, seeds, and the largest mismatch of the equal budgets."""
        rows: list[dict[str, Any]] = []
        for arm, run in self.configs.items():
            result, batches = account(run.model, context=run.trainer.sequence_length), run.trainer.batches()
            rows.append(
                {"arm": arm, "about": self.arms[arm].about}
                | {name: getattr(result, name) for name in MODEL_BUDGETS}
                | {"tokens": self.tokens_of(arm), "steps": batches.num_steps, "seeds": len(self.seeds)}
            )
        by_arm = {row["arm"]: row for row in rows}
        for row in rows:
            reference = by_arm[self.baseline_of(row["arm"])]
            held = [budget for budget in self.file.equal if budget not in self.arms[row["arm"]].differs]
            row["mismatch"] = max((abs(row[b] / reference[b] - 1) for b in held), default=0.0)
        return rows


def from_trial(first: Run.Config, folder: Path, fingerprint: str) -> Origin.Config:
    """Name the weights with which a trial in `folder` ends, known by its fingerprint before it is trained."""
    return Origin.Config(run=str(folder.absolute()), step=first.trainer.batches().num_steps, trial=fingerprint)


def with_origin(config: Any, key: str, origin: Origin.Config) -> Any:
    """Return a config in which the dotted `key` names a run. Raises ConfigError for a key that cannot name one."""
    first, _, rest = key.partition(".")
    if not isinstance(config, ConfigBase) or not hasattr(config, first):
        raise ConfigError(first, None, "a key of the run that names another one")
    return replace(config, **{first: with_origin(getattr(config, first), rest, origin) if rest else origin})


def require_same_weights(run: Run.Config, first: Run.Config, *, at: str, origin: str) -> None:
    """Raise ConfigError unless an arm's run can start from the weights of that of the arm `origin`."""
    if run.data.vocab_size != first.data.vocab_size:
        valid = f"{first.data.vocab_size}, as in {origin}, from whose weights it starts"
        raise ConfigError(f"{at}.data.vocab_size", run.data.vocab_size, valid)
    try:
        require_shapes(first.model.shapes(), run.model.shapes(), origin)
    except ConfigError as error:
        raise ConfigError(f"{at}.{error.key}", error.value, error.valid) from None


def _starts(words: Sequence[str]) -> bool:
    """Whether the words name a run to start from."""
    return any(word.key_or_group == KEY and word.value() is not None for word in checked(words))
