"""The report of a study: Markdown, one HTML file, CSV tables and figures."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ablations.reporting.findings import Findings, collect
from ablations.reporting.lead import lead_of
from ablations.reporting.sections import sections_of
from ablations.reporting.summary import print_verdict, summary
from ablations.trials.trials import Study
from dsv2.printing import warn
from dsv2.report.index import write_index
from dsv2.report.page import Section, write_page
from dsv2.report.terminal import animated
from dsv2.statistics.contrast import Contrast
from dsv2.statistics.verdicts import Effect, judge

if TYPE_CHECKING:
    from rich.console import Console

CONTRAST_COLUMNS = ["arm", "baseline", "metric", "margin", "better", "error", "n", "mean", "sd", "low", "high", "word"]


def report_study(study: Study, console: "Console") -> None:
    """Print the closing table from stored results, then write the report, which takes seconds, and print its path."""
    findings = collect(study)
    print_verdict(findings, console)
    with console.status("drawing the figures") if animated(console) else nullcontext() as status:
        begun = status.update if status else lambda text: None
        path = write_report(findings, study.report_folder, study.formats, begun)
        index = write_index()
    console.print(f"report:  {path}\nfigures: {path.parent / 'figures'}\nstudies: {index}", soft_wrap=True)


def write_report(
    findings: Findings,
    folder: Path,
    formats: Collection[str] = (),
    begun: Callable[[str], object] = lambda text: None,
) -> Path:
    """Write report.md, report.html, CSV tables and figures under `folder`; return the path of report.html.

    Figures are PNGs, and files of the other `formats`, "svg" and "pdf", too; `begun` is told before each is drawn.

    table.csv has means by arm, trials.csv every trial, contrasts.csv the verdicts.

    If any trial has no result, the report says so and gives no verdict. What failed within
    trials and figures that cannot be drawn are listed on the page and on stderr, beside what there is.
    """
    from ablations.reporting.figures import draw  # imports matplotlib

    headline, _ = summary(findings)
    title = f"{findings.study.name} ({findings.study.scale})"
    tables = {"table": findings.by_arm, "trials": trials_table(findings), "contrasts": contrasts_table(findings)}
    csv = {name: table.to_csv(index=False) for name, table in tables.items()}
    drawn, undrawn = draw(findings, formats, begun)
    sections = [*sections_of(findings, drawn), *failures([*findings.problems, *undrawn])]
    return write_page(folder, title, headline, sections, csv, lead=lead_of(findings), formats=formats)


def trials_table(findings: Findings) -> pd.DataFrame:
    """Return one row per trial: arm, seed, status, tokens, seconds, steps, and every metric of the report."""
    chosen = findings.chosen
    steps = (
        dict(zip(findings.accounting["arm"], findings.accounting["steps"], strict=True))
        if len(findings.accounting)
        else {}
    )
    measured = [metric for metric in findings.study.metrics if metric in chosen]
    kept = chosen[["arm", "seed", "status", "tokens", "seconds", *measured]]
    kept.insert(3, "steps", chosen["arm"].map(steps))
    return kept


def contrasts_table(findings: Findings) -> pd.DataFrame:
    """Return one row per contrast: what was declared, the error of its interval, the interval and the verdict."""
    directions = findings.study.metrics
    rows = [
        {name: getattr(effect, name) for name in ("arm", "baseline", "metric", "margin")}
        | {"better": directions[effect.metric], "error": findings.look.error}
        | {name: getattr(effect, name) for name in ("n", "mean", "sd", "low", "high", "word")}
        for effect in findings.verdicts
    ]
    return pd.DataFrame(rows, columns=CONTRAST_COLUMNS)


def judged_again(folder: Path) -> list[Effect]:
    """Return the verdicts of a written report, computed from its trials.csv and what its contrasts.csv declares."""
    trials, declared = (
        pd.read_csv(folder / f"{name}.csv", float_precision="round_trip", dtype={"arm": str, "baseline": str})
        for name in ("trials", "contrasts")
    )
    effects = []
    for arm, baseline, metric, margin, better, error in declared[CONTRAST_COLUMNS[:6]].itertuples(index=False):
        contrast = [Contrast(arm, baseline, metric, margin)]
        seeds = list(dict.fromkeys(trials["seed"]))
        effects += judge(trials, contrast, seeds=seeds, directions={metric: better}, error=error)
    return effects


def failures(problems: Sequence[str]) -> list[Section]:
    """Print each problem on stderr; return the section of a report that lists them, or nothing."""
    for problem in problems:
        warn(problem)
    return [Section("Failed", problems)] if problems else []
