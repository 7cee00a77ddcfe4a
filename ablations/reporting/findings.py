"""The findings of a study: everything that its report needs, in one value."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pandas as pd

from ablations.reporting.caches import ArmCache, caches_of
from ablations.reporting.words import StudyText, text_of
from ablations.trials.kernels import AND, MIXED, said
from ablations.trials.looks import Look, first_look, look_at, record_look
from ablations.trials.results import Results, results_of
from ablations.trials.trials import Study
from dsv2.metrics import quantity
from dsv2.routing.floor import random_floor
from dsv2.statistics.calibration import TrialsRate, from_trials
from dsv2.statistics.factorial import Term, factorial
from dsv2.statistics.verdicts import Effect, explore, judge, missing_trials
from dsv2.storage.rundir import read_result

FALSE_DRAWS = 2000  # number of studies drawn from an A/A study's trials
METRIC_COLUMNS = ["arm", "seed", "step", "tokens", "metric", "value"]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The tables stored by a study's trials, and the statistics computed from them.

    `step_floor` and `final_floor` are the routing metrics of a random router over the tokens of one logged step and of
    the validation set; empty for a dense baseline. `provenance` may nest.
    """

    study: StudyText
    results: pd.DataFrame  # one row per arm and seed
    metrics: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=METRIC_COLUMNS))  # long
    routing: pd.DataFrame | None = None  # one row per arm, seed, step, layer and expert; None or empty for dense models
    needles: pd.DataFrame = field(default_factory=pd.DataFrame)  # one row per arm, seed, question and depth, or empty
    accounting: pd.DataFrame = field(default_factory=pd.DataFrame)  # one row per arm
    provenance: Mapping[str, Any] = field(default_factory=dict)
    step_floor: Mapping[str, float] = field(default_factory=dict)
    final_floor: Mapping[str, float] = field(default_factory=dict)
    caches: tuple[ArmCache, ...] = ()  # of every arm; empty if they hold the same
    problems: Sequence[str] = ()  # sentences about parts of finished trials that failed
    recorded: Look | None = None  # what the store knows of looks at the study; None: this is the first

    @cached_property
    def chosen(self) -> pd.DataFrame:
        """The rows of the study's own arms and seeds."""
        return self.shown(self.results)

    def shown(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a table that are of the study's own arms and seeds; an empty table as it is."""
        if table.empty:
            return table
        return table[table["arm"].isin(list(self.study.arms)) & table["seed"].isin(list(self.study.seeds))]

    @cached_property
    def finished(self) -> pd.DataFrame:
        """The rows of `chosen` whose trial finished."""
        return self.chosen[self.chosen["status"] == "finished"]

    @cached_property
    def missing(self) -> list[str]:
        """The trials without a result, as text."""
        return missing_trials(self.chosen, list(self.study.arms), list(self.study.seeds))

    @property
    def comparable(self) -> bool:
        """Whether arms can be compared: every trial has a result, and there is more than one seed."""
        return not self.missing and len(self.study.seeds) > 1

    @property
    def look(self) -> Look:
        """Which look at the study this is; only for a study that is `comparable`."""
        return self.recorded or first_look(self.study.seeds, self.study.decided_at, max(len(self.study.contrasts), 1))

    @cached_property
    def verdicts(self) -> list[Effect]:
        """The contrasts with their verdicts; empty if trials are missing, for one seed, or if verdicts are refused."""
        if not self.comparable or self.look.refused:
            return []
        seeds = list(self.study.seeds)
        directions, error = self.study.metrics, self.look.error
        return judge(self.chosen, self.study.contrasts, seeds=seeds, directions=directions, error=error)

    def pair(self, effect: Effect) -> str:
        """Return an effect's arm, with the other one if this is not the arm's baseline."""
        own = self.study.baseline_of(effect.arm) == effect.baseline
        return effect.arm if own else f"{effect.arm} against {effect.baseline}"

    @cached_property
    def effects(self) -> list[Effect]:
        """Every other arm and metric, exploratory; empty if trials are missing or there is one seed."""
        if not self.comparable:
            return []
        decided = {effect[:3] for effect in self.verdicts}
        return [
            effect
            for metric in self.study.metrics
            for baseline, arms in self.study.families().items()
            for effect in explore(self.chosen, metric, arms=arms, baseline=baseline, seeds=list(self.study.seeds))
            if effect[:3] not in decided
        ]

    @cached_property
    def terms(self) -> list[Term]:
        """Main effects and interactions in every metric, if the arms are a grid; exploratory."""
        design = self.study.design()
        if not design or not self.comparable:
            return []
        return [
            term
            for metric in self.study.metrics
            if metric in self.results
            for term in factorial(self.chosen, metric, design, seeds=list(self.study.seeds))
        ]

    @cached_property
    def false_rates(self) -> list[TrialsRate]:
        """The rate of false verdicts between identical arms in studies of 5 seeds, or fewer if trials are few.

        First of studies that judge every metric, then of studies that judge one.
        """
        if not self.study.identical or not self.comparable:
            return []
        trials = self.finished[self.finished["arm"].isin(self.study.identical)]
        arms = max(2, min(len(self.study.identical), 4))
        seeds = min(5, len(trials) // (2 * arms))
        if seeds < 2:
            return []
        judged = [metric for metric in self.study.metrics if metric in trials]
        families = [judged, *([metric] for metric in judged)] if len(judged) > 1 else [judged]
        return [from_trials(trials, metrics, seeds, arms, FALSE_DRAWS) for metrics in families]

    @cached_property
    def by_arm(self) -> pd.DataFrame:
        """One row per arm: number n of finished seeds, then mean and standard deviation of each judged metric."""
        judged = [metric for metric in self.study.metrics if metric in self.finished]
        rows = []
        for arm in self.study.arms:
            trials = self.finished[self.finished["arm"] == arm]
            row: dict[str, Any] = {"arm": arm, "n": len(trials)}
            for metric in judged:
                row |= {f"{metric} mean": trials[metric].mean(), f"{metric} sd": trials[metric].std(ddof=1)}
            rows.append(row)
        return pd.DataFrame(rows)


# ---- from a store ----------------------------------------------------------------------------------------------------


def collect(study: Study) -> Findings:
    """Read the findings of `study` from its stored trials, and record the look at them."""
    results = results_of(study)
    findings = Findings(
        study=text_of(study),
        results=results,
        metrics=_since_the_start(study, results.metrics()),
        routing=results.routing(),
        needles=results.needles(),
        accounting=study.accounting(),
        provenance=_provenance(study, results),
        step_floor=_floor(study, per_step=True),
        final_floor=_floor(study, per_step=False),
        caches=caches_of(study),
    )
    return looked(study, without_failed(findings))


def _since_the_start(study: Study, metrics: pd.DataFrame) -> pd.DataFrame:
    """Count the tokens of arms that start from another from the start of that one."""
    before = {arm: study.tokens_of(spec.init_from) for arm, spec in study.arms.items() if spec.init_from is not None}
    return (
        metrics.assign(tokens=metrics["tokens"] + metrics["arm"].map(before).fillna(0).astype(int))
        if before
        else metrics
    )


def without_failed(findings: Findings) -> Findings:
    """Leave out metrics that a finished trial lacks because a benchmark of it failed, and add a sentence about it.

    A trial that lacks a metric of a contrast, or that of the study's question, counts as failed: verdicts hold
    together, so that none is given without the others.
    """
    finished, study = findings.finished, findings.study
    if "error" not in finished or not (said := finished["error"].map(lambda error: isinstance(error, str))).any():
        return findings
    failed = finished[said]
    problems = [f"{row.arm} seed {row.seed}: {row.error}." for row in failed.itertuples()]
    lacking = [metric for metric in study.metrics if metric not in failed or failed[metric].isna().any()]
    needed = [
        metric for metric in lacking if metric in {study.metric, *(contrast.metric for contrast in study.contrasts)}
    ]
    results = findings.results.copy()
    results.loc[failed.index[failed.reindex(columns=needed).isna().any(axis=1)], "status"] = "failed"
    left_out = [metric for metric in lacking if metric not in needed]
    problems += [f"{quantity(metric).name} is left out, since not every trial has it." for metric in left_out]
    kept = {metric: better for metric, better in study.metrics.items() if metric not in left_out}
    return replace(findings, study=replace(study, metrics=kept), results=results, problems=problems)


def looked(study: Study, findings: Findings) -> Findings:
    """Return the findings with the look that showing them is, which is recorded if there is anything to compare."""
    if not findings.comparable:
        return findings
    look = look_at(study)
    used = Counter(kernels for trial in findings.finished["kernels"] for kernels in trial.split(AND))
    if len(used) > 1 and not study.mixed_kernels:
        refused = f"its trials were computed with different kernels, {said(used)}; {MIXED} gives verdicts on them"
        look = look._replace(refused=refused)
    findings = replace(findings, recorded=look)
    if findings.look.number:
        words = {f"{findings.pair(effect)}, {effect.metric}": effect.word for effect in findings.verdicts}
        record_look(study, words)
    return findings


def _floor(study: Study, *, per_step: bool) -> dict[str, float]:
    run = study.configs[study.file.baseline]
    moe, settings = run.model.moe, run.trainer
    if moe is None:
        return {}
    per_batch = settings.batch.size * settings.sequence_length
    return random_floor(
        moe.num_experts,
        moe.top_k,
        moe.num_devices,
        per_batch * settings.log_every if per_step else settings.validation_tokens,
        max_devices=moe.max_devices,
        batch_tokens=per_batch,
    )


def _provenance(study: Study, results: Results) -> dict[str, Any]:
    """Return the command and the provenance stored by the trials, as lists of values where they differ."""
    stored = [read_result(trial.folder) for trial in study.trials]
    ended = [result for result in stored if {"provenance", "started", "ended", "data"} <= set(result)]
    provenance: dict[str, Any] = {"command": study.command}
    if not ended:
        return provenance
    for key in (key for key in ended[0]["provenance"] if key != "origin"):  # which differs from trial to trial
        values: list[Any] = []
        for result in ended:
            if (value := result["provenance"].get(key)) not in values:
                values.append(value)
        provenance[key] = values[0] if len(values) == 1 else values
    provenance["started"] = min(result["started"] for result in ended)
    provenance["ended"] = max(result["ended"] for result in ended)
    provenance["data"] = ended[0]["data"]
    return provenance
