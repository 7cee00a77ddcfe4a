"""The report of a study: verdict first, then what it rests on. Tables and figures in, Markdown and one HTML file out.

Needs no torch: everything is rebuilt from the tables that the trials left behind. `results` has one row a trial;
`metrics` is long (arm, seed, step, tokens, metric, value); `routing` has one row per arm, seed, step, layer and expert
and is empty or None for dense models; `accounting` has one row an arm.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.reporting.sections import FALSE_CAPTION, factorial_terms, false_verdicts, sections_of
from ablations.reporting.summary import (
    StudyText,
    arm_statistics,
    chosen,
    finished,
    study_effects,
    summary,
    verdict_table,
)
from dsv2.report.page import picture, write_page
from dsv2.statistics.verdicts import IncompleteStudy

__all__ = ["StudyText", "summary", "verdict_table", "write_report"]


def write_report(
    study: StudyText,
    results: pd.DataFrame,
    metrics: pd.DataFrame,
    routing: pd.DataFrame | None,
    accounting: pd.DataFrame,
    provenance: Mapping[str, Any],
    folder: Path,
    *,
    step_floor: Mapping[str, float] | None = None,
    final_floor: Mapping[str, float] | None = None,
) -> Path:
    """Write report.md, report.html, table.csv and figures/*.png under `folder`; the path of report.html.

    `step_floor` and `final_floor` are `random_floor` for the tokens of one logged step and of the validation set.
    `provenance` may nest (versions). Without a result for every trial the report says so and gives no verdict.
    """
    from ablations.reporting.figures import draw  # matplotlib only here
    from dsv2.plots.calibration import false_positive_rates

    results = chosen(study, results)
    try:
        effects, missing = study_effects(study, results), []
    except IncompleteStudy as error:
        effects, missing = [], error.missing
    if len(study.seeds) < 2:
        effects = []  # one seed is no effect
    headline, sentences = summary(study, effects, missing)
    terms = factorial_terms(study, results) if effects else []
    rates = false_verdicts(study, results) if study.identical and not missing else []
    pictures = draw(
        study, finished(results), metrics, routing, accounting, effects, terms, step_floor or {}, final_floor or {}
    )
    if rates:
        pictures = (picture("false_verdicts", FALSE_CAPTION, false_positive_rates(rates)), *pictures)
    others = [text for text in sentences if text not in headline]
    sections = sections_of(
        study, results, metrics, effects, terms, rates, accounting, provenance, others, pictures, final_floor or {}
    )
    table = arm_statistics(study, results).to_csv(index=False)
    return write_page(folder, f"{study.name} ({study.scale})", headline, sections, {"table": table})
