"""From a study's store to its report: collects what the trials left behind and has it judged and drawn.

`python -m ablations.report sweep=NAME [scale=...] [--table]` rebuilds a report from what is stored, without training;
of several scales also that of their ladder. `--table` prints the results as the paper prints its Tables 8 and 9, and
writes them as Markdown, LaTeX and HTML, instead.
"""

import textwrap
from typing import Any

from rich.console import Console

from ablations.reporting.summary import against, study_effects, summary, verdict_table
from ablations.reporting.write import StudyText, write_report
from ablations.trials.results import Results, results_of
from ablations.trials.trials import Study
from dsv2.models.moe.layer import MoE
from dsv2.routing.floor import random_floor
from dsv2.statistics.verdicts import IncompleteStudy
from dsv2.storage.rundir import read_result


def report_study(study: Study, console: Console) -> None:
    """Write the report of what is stored, print the closing table and where the report lies."""
    results, text = results_of(study), text_of(study)
    verdict_table(text, results, console)
    path = write_report(
        text,
        results,
        results.metrics(),
        results.routing(),
        study.accounting(),
        _provenance(study, results),
        study.folder / "report",
        step_floor=_floor(study, per_step=True),
        final_floor=_floor(study, per_step=False),
    )
    console.print(f"report:  {path}\nfigures: {path.parent / 'figures'}", highlight=False, soft_wrap=True)


def verdict(study: Study) -> str:
    """What is stored says, in lines of a page's width: overall, then each judged metric with the study's own first."""
    text = text_of(study)
    try:
        effects, missing = study_effects(text, results_of(study)), []
    except IncompleteStudy as error:
        effects, missing = [], error.missing
    overall, sentences = summary(text, effects, missing)
    said = [f"{against(text)}:", *sentences] if sentences else [overall]
    return "\n".join(textwrap.fill(sentence, 100, subsequent_indent="  ") for sentence in said)


def text_of(study: Study) -> StudyText:
    """What a report says of a study beside its numbers."""
    return StudyText(
        name=study.name,
        scale=study.scale,
        question=study.file.question,
        prediction=study.file.prediction,
        metric=study.file.metric,
        metrics=study.file.judged,
        equal=study.file.equal,
        margin=study.file.margin or {},
        baseline=study.file.baseline,
        arms={name: arm.about for name, arm in study.arms.items()},
        seeds=study.seeds,
        published=study.file.published,
        shows_at=study.file.shows_at,
        baselines={arm: study.baseline_of(arm) for arm in study.arms},
        differs={name: arm.differs for name, arm in study.arms.items()},
        identical=any(arm.seed_offset for arm in study.arms.values()),
        levels=study.file.levels(),
    )


def _floor(study: Study, *, per_step: bool) -> dict[str, float]:
    """What a uniformly random router would score on as many tokens; empty for a dense baseline."""
    run = study.configs[study.file.baseline]
    moe, settings = run.model.ffn, run.trainer
    if not isinstance(moe, MoE.Config):
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
    """The command, and what the trials say they were made with; several values where they differ."""
    stored = [read_result(trial.folder) for trial in study.trials]
    ended = [result for result in stored if {"provenance", "started", "ended", "data"} <= set(result)]
    found: dict[str, Any] = {"command": study.command}
    if not ended:
        return found
    for key in ended[0]["provenance"]:
        values: list[Any] = []
        for result in ended:
            if (value := result["provenance"].get(key)) not in values:
                values.append(value)
        found[key] = values[0] if len(values) == 1 else values
    found["started"] = min(result["started"] for result in ended)
    found["ended"] = max(result["ended"] for result in ended)
    found["data"] = ended[0]["data"]
    return found
