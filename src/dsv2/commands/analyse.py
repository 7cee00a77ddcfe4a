"""`python -m dsv2 analyse RUN`: analyse the experts of a model, with tables, figures and one page.

Losses are over the run's own validation text. Their 95% intervals are over its sequences: they cover the choice of
text, not of seeds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from dsv2.config import ConfigError
from dsv2.printing import described, warn
from dsv2.report.experts import ANALYSES, ModelOnText
from dsv2.report.findings import Analysis
from dsv2.report.page import Section, Table, write_page
from dsv2.report.pictures import Drawing, pictures
from dsv2.report.terminal import add_row, open_console, open_table
from dsv2.routing.interventions import DoesNotApply
from dsv2.storage.files import require_folder
from dsv2.storage.rundir import SNAPSHOTS
from dsv2.training.saved import SavedRun, open_run

Subject = TypeVar("Subject")
SHOWN = 10  # rows of a table in the terminal
MOST_ROWS = 40  # of a table on the page; the CSV has all rows


def analyse(
    run: str | Path,
    *,
    out: Path | None = None,
    only: Sequence[str] = (),
    against: str | Path | None = None,
    text: Sequence[str] = (),
) -> tuple[Path | None, list[str]]:
    """Run all analyses that apply, or those named in `only`; print tables and write the page.

    Returns the path of the page, None if nothing applies, as for a dense run, and a sentence about each analysis or
    figure that failed, and each analysis of `only` that does not apply; stderr and the page have them too, beside the
    others.

    `out` is by default `analysis` in the run directory, followed by what `only`, `text` and `against` chose.
    `against` is another run on the same validation text, for comparison; `text` selects other text than the run's own
    (see `open_run`). Raises ValueError for an unknown name, a folder without config or weights, runs on different text,
    an `out` that cannot be a folder, and if nothing is left because all that applies failed.
    """
    require_known(only, ANALYSES)
    if out is not None:
        require_folder("--out", out)
    opened = open_run(run, text=text)
    second = None if against is None else open_run(against, text=text)
    other = None if second is None else on_text(second)
    examined = on_text(opened, other)
    if other and not torch.equal(examined.validation.targets, other.validation.targets):
        raise ConfigError("against", str(against), f"a run on the validation text of {opened.folder}")
    count, length = examined.validation.inputs.shape
    headline = f"Run {opened.folder.name}: {count} validation sequences of {length} tokens."
    if other:
        headline += f" Compared with {other.name}, {against}."
    chosen = [*only, *text, *([] if second is None else [f"against={second.folder.resolve().name}"])]
    folder = out or opened.folder / folder_name(chosen)
    return perform(ANALYSES, only, examined, folder, f"Experts of {examined.name}", headline)


def require_known(only: Sequence[str], analyses: Mapping[str, Any]) -> None:
    """Raise ConfigError for a name that is not one of the analyses."""
    if unknown := [name for name in only if name not in analyses]:
        raise ConfigError("only", ",".join(unknown), f"one or more of {', '.join(analyses)}")


def folder_name(chosen: Sequence[str]) -> str:
    """Name the folder of a report by what was chosen, so that a part does not overwrite the whole."""
    return "-".join(["analysis", *(re.sub(r"[^\w.=,-]+", "_", word) for word in chosen)])


def perform(
    analyses: Mapping[str, Callable[[Subject], Analysis]],
    only: Sequence[str],
    subject: Subject,
    folder: Path,
    title: str,
    headline: str,
) -> tuple[Path | None, list[str]]:
    """Run all analyses, or those in `only`, print their tables and write the page; return what `analyse` does."""
    sections, tables, left_out, failed = list[Section](), dict[str, str](), [], []
    for name in only or analyses:
        try:
            analysis = analyses[name](subject)
        except DoesNotApply as reason:
            left_out.append(f"{name} does not apply: {reason}.")
            continue
        except Exception as error:  # of any library; the other analyses do not depend on it
            failed.append(f"{name} failed: {described(error)}.")
            continue
        _show(analysis)
        section, problems = _section(analysis)
        sections.append(section)
        failed += problems
        tables |= {name: table.to_csv(index=False) for name, table in analysis.tables.items()}
    if failed and not sections:
        raise ValueError(" ".join([*failed, *left_out]))
    asked = left_out if only else []
    for problem in (*failed, *asked):
        warn(problem)
    if not only:
        print(*left_out, sep="\n", end="\n" if left_out else "")
    if not sections:
        return None, asked
    if left_out:
        sections.append(Section("Not applicable", left_out))
    if failed:
        sections.append(Section("Failed", failed))
    return write_page(folder, title, headline, sections, tables), [*failed, *asked]


def on_text(run: SavedRun, against: ModelOnText | None = None) -> ModelOnText:
    """Pair a run's model with its validation text. Raises ValueError for a run without weights or text."""
    snapshots = run.folder / SNAPSHOTS
    return ModelOnText(
        run.name,
        run.model,
        run.source,
        batch_size=run.batch_size,
        snapshots=snapshots if snapshots.is_file() else None,
        against=against,
    )


def _section(analysis: Analysis) -> tuple[Section, list[str]]:
    """Return the section of an analysis, and sentences about figures that it lacks."""
    tables = []
    for name, whole in analysis.tables.items():
        more = len(whole) - MOST_ROWS
        note = f"{more} more rows in {name}.csv." if more > 0 else ""
        rows = _cells(whole.head(MOST_ROWS)).to_numpy().tolist()
        tables.append(Table(list(map(str, whole.columns)), rows, note))
    drawn, failed = pictures([Drawing(name, "", figure.get_figure) for name, figure in analysis.figures.items()])
    problems = [*analysis.problems, *failed]
    return Section(analysis.title, [analysis.note, *problems], tables, drawn, analysis.finding), problems


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """Format the cells: floats with four significant digits, others unchanged."""
    return table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))


def _show(analysis: Analysis) -> None:
    console = open_console()
    console.print(analysis.title, style="bold")
    for whole in analysis.tables.values():
        words = [str(name) for name in whole if not pd.api.types.is_numeric_dtype(whole[name])]
        table = open_table(list(map(str, whole)), text=words)
        for row in _cells(whole.head(SHOWN)).itertuples(index=False):
            add_row(table, row)
        console.print(table)
    console.print(analysis.finding + "\n", soft_wrap=True)
