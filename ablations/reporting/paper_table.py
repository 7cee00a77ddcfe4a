"""Results as the paper prints them: an arm a column, a quantity a row, the published rows underneath.

`python -m ablations.report sweep=attention_moe --table` prints Markdown and writes Markdown, LaTeX and HTML beside the
report. Any study can be printed so; published rows are known for Tables 8 and 9 of the report and Table 1 of
DeepSeekMoE.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ablations.reporting.summary import finished, spread
from ablations.trials.results import Results
from ablations.trials.trials import Study
from dsv2.metrics import quantity
from dsv2.report.page import Table
from dsv2.storage.files import write_text


class Published(NamedTuple):
    """Rows of a published table; the arms of our study stand for its columns."""

    source: str
    rows: dict[str, dict[str, str]]  # quantity -> arm -> as printed


def _rows(arms: str, values: dict[str, str]) -> dict[str, dict[str, str]]:
    """Rows of words in the order of `arms`."""
    return {name: dict(zip(arms.split(), row.split(), strict=True)) for name, row in values.items()}


_PAIRS = "small_mha small_mla large_mha large_mla"
PUBLISHED = {
    "attention_dense": Published(
        "DeepSeek-V2, Table 8: 7B dense models, 1.33T tokens",
        _rows(
            "mqa gqa mha",
            {
                "parameters": "7.1B 6.9B 6.9B",
                "BBH": "33.2 35.6 37.0",
                "MMLU": "37.9 41.2 45.2",
                "C-Eval": "30.0 37.7 42.9",
                "CMMLU": "34.6 38.4 43.5",
            },
        ),
    ),
    "attention_moe": Published(
        "DeepSeek-V2, Table 9: MoE models, 1.33T tokens (small) and 420B tokens (large)",
        _rows(
            _PAIRS,
            {
                "active parameters": "2.5B 2.4B 25.0B 21.5B",
                "parameters": "15.8B 15.7B 250.8B 247.4B",
                "KV cache per token": "110.6K 15.6K 860.2K 34.6K",
                "BBH": "37.9 39.0 46.6 50.7",
                "MMLU": "48.7 50.0 57.5 59.0",
                "C-Eval": "51.6 50.9 57.9 59.2",
                "CMMLU": "52.3 53.4 60.7 62.5",
            },
        ),
    ),
    "moe_baselines": Published(
        "DeepSeekMoE, Tables 1 and 2: 2B parameters, 100B tokens",
        _rows(
            "dense hash switch gshard deepseek_moe gshard_x1.5 dense_x16",
            {
                "Pile loss": "2.060 1.932 1.881 1.867 1.808 1.808 1.806",
            },
        ),
    ),
}


def paper_table(study: Study, results: Results) -> tuple[Table, str]:
    """The table, and the line of text that belongs under it."""
    arms, done = list(study.arms), finished(results)
    budgets = {row["arm"]: row for row in study.budgets()}
    rows = [
        [label, *(f"{budgets[arm][name]:,}" for arm in arms)]
        for name, label in (
            ("active_params", "active parameters"),
            ("total_params", "parameters"),
            ("kv_elements_per_token", "KV cache per token (elements)"),
            ("tokens", "training tokens"),
        )
    ]
    for metric, better in study.file.judged.items():
        if metric not in done:
            continue
        found = [done[done["arm"] == arm][metric] for arm in arms]
        arrow = "lower is better" if better == "lower" else "higher is better"
        rows.append([f"{quantity(metric).short} ({arrow})", *(spread(one.mean(), one.std(ddof=1)) for one in found)])
    text = f"{study.name} at scale {study.scale}: mean ± standard deviation over {len(study.seeds)} seeds."
    unfinished = len(results) - len(done)
    if unfinished:
        text += f" {unfinished} of {len(results)} trials have no result: not a basis for a comparison."
    if study.name in PUBLISHED:
        published = PUBLISHED[study.name]
        rows += [[f"{name} (published)", *(row.get(arm, "") for arm in arms)] for name, row in published.rows.items()]
        text += f" Published rows: {published.source}; other models, data and budgets, not comparable in size."
    return Table(["", *arms], rows), text


def markdown(table: Table, text: str) -> str:
    cells = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + f"\n\n{text}\n"


def latex(table: Table, text: str) -> str:
    """A `tabular` for booktabs, inside a table with its caption."""

    def escaped(cell: str) -> str:
        return "".join({"_": r"\_", "%": r"\%", "&": r"\&", "±": r"$\pm$", "#": r"\#"}.get(c, c) for c in cell)

    lines = [" & ".join(map(escaped, row)) + r" \\" for row in table.rows]
    ours = [line for line in lines if "(published)" not in line]
    theirs = [line for line in lines if "(published)" in line]
    middle = [r"\midrule", *theirs] if theirs else []
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escaped(text)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            " & ".join(map(escaped, table.header)) + r" \\",
            r"\midrule",
            *ours,
            *middle,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def html_table(table: Table, text: str) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return (
        f"<table>\n<caption>{html.escape(text)}</caption>\n<thead>{row(table.header, 'th')}</thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n"
    )


def write_tables(study: Study, results: Results, folder: Path) -> str:
    """Write paper_table.md, .tex and .html under `folder`; the Markdown."""
    table, text = paper_table(study, results)
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, render in (("md", markdown), ("tex", latex), ("html", html_table)):
        write_text(folder / f"paper_table.{suffix}", render(table, text))
    return markdown(table, text)
