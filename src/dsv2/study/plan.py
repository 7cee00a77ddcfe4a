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
from dsv2.composition import checked
from dsv2.config import ConfigError, plain, structure
from dsv2.metrics import BUDGETS, MODEL_BUDGETS
from dsv2.study.contrasts import declared
from dsv2.study.files import Probe, ScaleFile, StudyFile, definition, read
from dsv2.study.words import LABELS, require_allowed
from dsv2.training.run import Run, load

EQUAL_WITHIN = 0.01  # largest relative difference that still counts as held equal
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
        self.configs: dict[str, Run.Config] = {}
        self.adjusted: dict[str, dict[str, tuple[int, int]]] = {}  # arm -> keys under `model.` -> old and new values
        for name in sorted(self.arms, key=lambda arm: self.baseline_of(arm) != arm):  # baselines first
            self.configs[name], self.adjusted[name] = self._solve(name)
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
        spec, scale = self.arms[arm], self._scale
        if spec.size is not None and spec.size not in scale.sizes:
            valid = f"a size of scale {self.scale}, {', '.join(scale.sizes) or 'which has none'}"
            raise ConfigError(f"arms.{arm}.size", spec.size, valid)
        return [
            *scale.overrides,
            *self.file.scales.get(self.scale, ()),
            *(scale.sizes[spec.size] if spec.size is not None else ()),
            *self.file.data,
            *self.file.base,
            *spec.overrides,
            *spec.scales.get(self.scale, ()),
            *QUIET,
            *((*self.probes[probe].overrides, "benchmarks=none", *scale.probe) if probe is not None else ()),
            *self.overrides,
        ]

    def run_of(self, arm: str, probe: str | None = None) -> Run.Config:
        """Return the typed run of an arm, or of its training on a probe with the same solver changes."""
        if probe is None:
            return self.configs[arm]
        if (arm, probe) not in self._on_probes:
            self._on_probes[arm, probe] = self._load(arm, probe, self.changes[arm])
        return self._on_probes[arm, probe]

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
        words = self._words(arm, probe, changes)
        for override in checked(words):
            if override.key_or_group in ("seed", *LABELS):  # would make trials coincide, or be lost
                valid = "a study sets this itself; use seeds=[0,1] to choose seeds"
                raise ConfigError(override.key_or_group, override.value(), valid)
        run = load(words)
        return replace(run, study=self.name, scale=self.scale, arm=arm, probe=probe)

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

    def budgets(self) -> list[dict[str, Any]]:
        """Return one row per arm: accounting, tokens, steps, seeds, and the largest mismatch of the equal budgets."""
        rows: list[dict[str, Any]] = []
        for arm, run in self.configs.items():
            result, batches = account(run.model, context=run.trainer.sequence_length), run.trainer.batches()
            rows.append(
                {"arm": arm, "about": self.arms[arm].about}
                | {name: getattr(result, name) for name in MODEL_BUDGETS}
                | {"tokens": batches.total_tokens, "steps": batches.num_steps, "seeds": len(self.seeds)}
            )
        by_arm = {row["arm"]: row for row in rows}
        for row in rows:
            reference = by_arm[self.baseline_of(row["arm"])]
            held = [budget for budget in self.file.equal if budget not in self.arms[row["arm"]].differs]
            row["mismatch"] = max((abs(row[b] / reference[b] - 1) for b in held), default=0.0)
        return rows
