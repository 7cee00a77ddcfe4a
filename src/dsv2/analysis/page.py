"""Sections of an analysis, as Markdown with figures beside it and as one self-contained HTML page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from dsv2.files import replacing, write_text

MOST_ROWS = 40  # of a table on the page; the CSV has all
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
h1, h2 {{ line-height: 1.25 }}
.finding {{ font-weight: 600 }}
.note {{ color: #555 }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child, td.text, th.text {{ text-align: left }}
img {{ max-width: 100% }}
</style>
{body}
</html>
"""


class Section(NamedTuple):
    """One analysis: what it found, and the tables and figures, each under its file's name, that show it."""

    title: str
    finding: str
    note: str
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]


def write_pages(title: str, intro: Sequence[str], sections: Sequence[Section], folder: Path) -> Path:
    """Write report.md, report.html, a CSV a section and figures/*.png under `folder`; the path of report.html."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    text, body = [f"# {title}", *intro], [f"<h1>{html.escape(title)}</h1>", *(_paragraph(line) for line in intro)]
    for section in sections:
        text += [f"## {section.title}", f"**{section.finding}**", section.note]
        body += [f"<h2>{html.escape(section.title)}</h2>", _paragraph(section.finding, "finding")]
        body.append(_paragraph(section.note, "note"))
        for name, figure in section.figures.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=150)
            with replacing(folder / "figures" / f"{name}.png") as scratch:
                scratch.write_bytes(buffer.getvalue())
            source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            text.append(f"![{section.title}](figures/{name}.png)")
            body.append(f'<p><img alt="{html.escape(section.finding)}" src="{source}"></p>')
        for name, table in section.tables.items():
            write_text(folder / f"{name}.csv", table.to_csv(index=False))
            shown, more = cells(table.head(MOST_ROWS)), len(table) - MOST_ROWS
            text.append(_markdown(shown))
            body.append(_html_table(shown))
            if more > 0:
                text.append(f"{more} more rows in {name}.csv.")
                body.append(_paragraph(f"{more} more rows in {name}.csv.", "note"))
    write_text(folder / "report.md", "\n\n".join(text) + "\n")
    write_text(folder / "report.html", PAGE.format(title=html.escape(title), body="\n".join(body)))
    return folder / "report.html"


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: floats with four significant digits, words as they are."""
    return table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _html_table(table: pd.DataFrame) -> str:
    words = {name for name in table if name in ("domain", "tokens_in_text")}
    kind = {name: ' class="text"' if name in words else "" for name in table}
    head = "".join(f"<th{kind[name]}>{html.escape(str(name))}</th>" for name in table)
    rows = (
        "<tr>" + "".join(f"<td{kind[name]}>{html.escape(str(row[name]))}</td>" for name in table) + "</tr>"
        for row in table.to_dict("records")
    )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
