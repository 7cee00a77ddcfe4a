"""The report of a study, verdict first: Markdown, one HTML file, a CSV table and figures."""

from pathlib import Path
from typing import TYPE_CHECKING

from ablations.reporting.findings import Findings, collect
from ablations.reporting.sections import sections_of
from ablations.reporting.summary import print_verdict, summary
from ablations.trials.trials import Study
from dsv2.report.page import write_page

if TYPE_CHECKING:
    from rich.console import Console


def report_study(study: Study, console: "Console") -> None:
    """Write the report from stored results, then print the closing table and the report's path."""
    findings = collect(study)
    print_verdict(findings, console)
    path = write_report(findings, study.folder / "report")
    console.print(f"report:  {path}\nfigures: {path.parent / 'figures'}", soft_wrap=True)


def write_report(findings: Findings, folder: Path) -> Path:
    """Write report.md, report.html, table.csv and figures/*.png under `folder`; return the path of report.html.

    If any trial has no result, the report says so and gives no verdict.
    """
    from ablations.reporting.figures import draw  # imports matplotlib

    headline, _ = summary(findings)
    title = f"{findings.study.name} ({findings.study.scale})"
    table = findings.by_arm.to_csv(index=False)
    return write_page(folder, title, headline, sections_of(findings, draw(findings)), {"table": table})
