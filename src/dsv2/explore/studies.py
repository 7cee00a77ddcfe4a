"""The reports that studies left in `runs/<sweep>/<scale>/report/`, read from their files alone."""

import html
import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dsv2.analysis.style import quantity
from dsv2.explore.painting import table


class Report(NamedTuple):
    """Where one study's report lies."""

    folder: Path

    @property
    def name(self) -> str:
        return f"{self.folder.parts[-3]} ({self.folder.parts[-2]})"


def reports(root: Path) -> list[Report]:
    """Every complete report under the root of the runs, by name of study and scale; report.html is written last."""
    return [Report(path.parent) for path in sorted(root.glob("*/*/report/report.html"))]


def headline(report: Report) -> str:
    """The verdict: the bold line that report.md opens with. ValueError where there is none."""
    path = report.folder / "report.md"
    found = re.search(r"^\*\*(.+)\*\*$", path.read_text(), flags=re.MULTILINE) if path.is_file() else None
    if found is None:
        raise ValueError(f"{path}: no verdict in it; rebuild it with python -m ablations.report")
    return found[1]


def results(report: Report) -> str:
    """`table.csv` as an HTML table: a row an arm, mean ± standard deviation over seeds. ValueError if it is damaged."""
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
    header = ["arm", "seeds", *(html.escape(quantity(metric).short) for metric in metrics)]
    return table(header, rows, numbers=range(1, len(header)))


def frame(report: Report) -> str:
    """The whole report in a frame of its own, in which no script runs and from which nothing can be asked."""
    page = html.escape((report.folder / "report.html").read_text(), quote=True)
    return f'<iframe sandbox title="{html.escape(report.name)}" srcdoc="{page}"></iframe>'


def _spread(mean: float, deviation: float) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.3f}" if pd.isna(deviation) else f"{mean:.3f} ± {deviation:.3f}"
