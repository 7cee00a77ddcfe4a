"""Results laid out as in a paper: one column per arm, one row per quantity, published rows at the bottom.

`python -m ablations.report sweep=attention_moe --table` prints Markdown and writes Markdown, LaTeX and HTML beside the
report. It works for any study; if the study's file names a `paper_table`, that table's rows are added.
"""

import html
from functools import partial
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from ablations.reporting.findings import Findings, collect
from ablations.reporting.words import spread
from ablations.trials.trials import Study
from dsv2.accounting.paper_tables import PAPER_TABLES
from dsv2.metrics import quantity
from dsv2.printing import described
from dsv2.report.page import Table, markdown_table, markdown_text
from dsv2.storage.files import write_text

BUDGETS = ("active_params", "total_params", "kv_elements_per_token", "tokens")


def paper_table(study: Study, findings: Findings) -> tuple[pd.DataFrame, str]:
    """Return the table, with rows indexed by origin (ours, published) and quantity, and the line below it."""
    arms, done, budgets = list(study.arms), findings.finished, findings.accounting.set_index("arm")
    rows = {("ours", quantity(name).label): [f"{budgets[name][arm]:,}" for arm in arms] for name in BUDGETS}
    for metric, better in study.file.judged.items():
        if metric in done:
            values = [done[done["arm"] == arm][metric] for arm in arms]
            label = f"{quantity(metric).name} ({better} is better)"
            rows["ours", label] = [spread(column.mean(), column.std(ddof=1)) for column in values]
    over = f"mean ± standard deviation over {len(study.seeds)} seeds" if len(study.seeds) > 1 else "one seed"
    text = f"{study.name} at scale {study.scale}: {over}."
    if unfinished := len(findings.chosen) - len(done):
        text += f" {unfinished} of {len(findings.chosen)} trials have no result: do not compare arms."
    if findings.problems:
        text += f" {' '.join(findings.problems)}"
    if study.file.paper_table is not None:
        published = PAPER_TABLES[study.file.paper_table]
        rows |= {("published", name): [row.get(arm, "") for arm in arms] for name, row in published.rows.items()}
        text += f" Published: {published.source} ({published.setting}); other models, data and budgets, not comparable."
    return pd.DataFrame.from_dict(rows, orient="index", columns=arms).set_axis(pd.MultiIndex.from_tuples(rows)), text


def markdown(table: pd.DataFrame, text: str) -> str:
    """Format the table as Markdown, followed by `text`."""
    rows = [[*labels, *row] for labels, row in zip(table.index, table.to_numpy().tolist(), strict=True)]
    return f"{markdown_table(Table(['', '', *table.columns], rows))}\n\n{markdown_text(text)}\n"


LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
)


def latex_text(text: str) -> str:
    """Return LaTeX that is typeset as `text`, with line breaks as spaces."""
    return " ".join(text.split()).translate(LATEX)


def latex(table: pd.DataFrame, text: str) -> str:
    """Format the table as LaTeX for the packages booktabs and multirow, with `text` as caption."""
    escaped = table.map(latex_text).rename(columns=latex_text, index=latex_text)
    columns = "ll" + "r" * len(table.columns)
    return escaped.to_latex(escape=False, caption=latex_text(text), column_format=columns)


def html_table(table: pd.DataFrame, text: str) -> str:
    """Format the table as HTML, with `text` as caption."""
    style = Styler(table, uuid="paper_table", cell_ids=False, caption=html.escape(text, quote=False))
    for formatter in (style.format, partial(style.format_index, axis=0), partial(style.format_index, axis=1)):
        formatter(escape="html")
    return style.to_html(doctype_html=False) + "\n"


def write_tables(study: Study) -> tuple[str, list[str]]:
    """Write paper_table.md, .tex and .html beside the study's report.

    Returns the Markdown, and a sentence about each file that could not be written.
    """
    folder: Path = study.folder / "report"
    table, text = paper_table(study, collect(study))
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for suffix, render in (("md", markdown), ("tex", latex), ("html", html_table)):
        try:
            write_text(folder / f"paper_table.{suffix}", render(table, text))
        except Exception as error:  # of a library that renders; the other files do not depend on it
            failed.append(f"paper_table.{suffix} could not be written: {described(error)}")
    return markdown(table, text), failed
