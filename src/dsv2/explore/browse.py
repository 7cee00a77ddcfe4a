"""The studies tab: lists the reports under the runs root and shows them."""

import html
import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import panel as pn

from dsv2.explore.html import table
from dsv2.explore.look import html_pane
from dsv2.metrics import quantity
from dsv2.storage.rundir import runs_root


class Browser:
    """The list of reports and the selected one. Each visitor of the page has an own instance."""

    def __init__(self) -> None:
        self.found: dict[str, Report] = {}
        self.which = pn.widgets.Select(name="Study", width=360)
        refresh = pn.widgets.Button(name="Refresh", width=100, align="end")
        refresh.on_click(self.refresh)
        self.which.param.watch(self._show, "value")
        self.verdict, self.results, self.frame = html_pane(), html_pane(), html_pane()
        self.column = pn.Column(
            pn.Row(self.which, refresh), self.verdict, self.results, self.frame, sizing_mode="stretch_width"
        )
        self.refresh()

    def refresh(self, *_: Any) -> None:
        """Look for reports, and keep the selection."""
        self.found = {report.name: report for report in reports(runs_root())}
        kept = self.which.value if self.which.value in self.found else next(iter(self.found), None)
        self.which.param.update(options=list(self.found), value=kept)
        self._show()

    def _show(self, *_: Any) -> None:
        report = self.found.get(self.which.value)
        if report is None:
            root = html.escape(str(runs_root().resolve()))
            how = "run <code>python -m ablations.run sweep=balance_losses</code> to create one"
            parts = [f"<p>No report in {root} yet; {how}.</p>", "", ""]
        else:
            where = html.escape(str(report.folder.resolve() / "report.html"))
            try:
                parts = [
                    f'<p class="verdict">{html.escape(headline(report))}</p>',
                    f'<p class="note">Mean ± standard deviation over seeds.</p>{results(report)}',
                    f'<h2>Full report</h2><p class="note">{where}</p>{frame(report)}',
                ]
            except (ValueError, OSError) as error:
                parts = [f'<p class="message">{html.escape(str(error))}</p>', "", ""]
        self.verdict.object, self.results.object, self.frame.object = parts


# ---- the reports -----------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """The location of a study's report."""

    folder: Path

    @property
    def name(self) -> str:
        return f"{self.folder.parts[-3]} ({self.folder.parts[-2]})"


def reports(root: Path) -> list[Report]:
    """List every complete report under the runs root, by study and scale; report.html is written last."""
    return [Report(path.parent) for path in sorted(root.glob("*/*/report/report.html"))]


def headline(report: Report) -> str:
    """Return the verdict, the bold line at the top of report.md. Raises ValueError if there is none."""
    path = report.folder / "report.md"
    headline = re.search(r"^\*\*(.+)\*\*$", path.read_text(), flags=re.MULTILINE) if path.is_file() else None
    if headline is None:
        raise ValueError(f"{path}: contains no verdict; rebuild it with python -m ablations.report")
    return headline[1]


def results(report: Report) -> str:
    """Return `table.csv` as an HTML table: one row per arm, mean ± standard deviation over seeds.

    Raises ValueError if it is damaged.
    """
    path = report.folder / "table.csv"
    try:
        arms = pd.read_csv(path)
        metrics = [column.removesuffix(" mean") for column in map(str, arms) if column.endswith(" mean")]
        rows = [
            [html.escape(row["arm"]), str(row["n"]), *(_spread(row[f"{m} mean"], row[f"{m} sd"]) for m in metrics)]
            for row in arms.to_dict("records")
        ]
    except (OSError, KeyError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: {error}; rebuild it with python -m ablations.report") from None
    header = ["arm", "seeds", *(html.escape(quantity(metric).name) for metric in metrics)]
    return table(header, rows, numbers=range(1, len(header)))


def frame(report: Report) -> str:
    """Return the full report in a sandboxed frame, without scripts and network access."""
    page = html.escape((report.folder / "report.html").read_text(), quote=True)
    return f'<iframe sandbox title="{html.escape(report.name)}" srcdoc="{page}"></iframe>'


def _spread(mean: float, deviation: float) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.3f}" if pd.isna(deviation) else f"{mean:.3f} ± {deviation:.3f}"
