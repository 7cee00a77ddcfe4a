"""`python -m dsv2 analyse RUN`: what the experts of a trained run do, as tables, figures and one page.

Losses are over the run's own validation text, with 95% intervals over its sequences: they say how far other text could
move them, not how far other seeds would.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from dsv2.config import ConfigError
from dsv2.report.experts import ANALYSES, Analysis, Subject
from dsv2.report.page import Section, Table, picture, write_page
from dsv2.routing.interventions import DoesNotApply
from dsv2.training.callbacks.snapshots import SNAPSHOTS
from dsv2.training.saved import load_model, load_run

SHOWN = 10  # rows of a table in the terminal
MOST_ROWS = 40  # of a table on the page; the CSV has all


def analyse(
    folder: Path, *, out: Path | None = None, only: Sequence[str] = (), against: Path | None = None
) -> Path | None:
    """Run all analyses that apply, or `only` those named; print tables, write pages, give the path of report.html.

    `against` is another run on the same validation text, to compare with. None where nothing applies, as for a dense
    run. Raises ValueError for an unknown name, for a folder without config or weights, and for other text.
    """
    if unknown := [name for name in only if name not in ANALYSES]:
        raise ConfigError("only", ",".join(unknown), f"one or more of {', '.join(ANALYSES)}")
    run = subject(folder, None if against is None else subject(against))
    if run.against and not torch.equal(run.validation.targets, run.against.validation.targets):
        raise ConfigError("against", str(against), f"a run on the validation text of {folder}")
    found, left_out = list[Analysis](), []
    for name in only or ANALYSES:
        try:
            analysis = ANALYSES[name](run)
        except DoesNotApply as reason:
            left_out.append(f"{name} does not apply: {reason}.")
            continue
        _show(analysis)
        found.append(analysis)
    print(*left_out, sep="\n", end="\n" if left_out else "")
    if not found:
        return None
    count, length = run.validation.inputs.shape
    what = f"Run {folder.name}: {count} validation sequences of {length} tokens."
    if run.against:
        what += f" Compared with {run.against.name}, {against}."
    sections = [_section(each) for each in found]
    if left_out:
        sections.append(Section("What does not apply", left_out))
    tables = {name: table.to_csv(index=False) for each in found for name, table in each.tables.items()}
    return write_page(out or folder / "analysis", f"What the experts of {run.name} do", what, sections, tables)


def subject(folder: Path, against: Subject | None = None) -> Subject:
    """A run's newest weights and its validation text. Raises ValueError for what is no run, or has no weights."""
    run, model = load_run(folder), load_model(folder)
    settings, snapshots = run.trainer, folder / SNAPSHOTS
    source = run.data.open(
        sequence_length=settings.sequence_length, seed=run.seed, validation_tokens=settings.validation_tokens
    )
    return Subject(
        f"{run.arm}-s{run.seed}" if run.arm else folder.name,
        model,
        source,
        batch_size=settings.batch.size,
        snapshots=pd.read_parquet(snapshots) if snapshots.is_file() else None,
        against=against,
    )


def _section(analysis: Analysis) -> Section:
    tables = []
    for name, whole in analysis.tables.items():
        more = len(whole) - MOST_ROWS
        note = f"{more} more rows in {name}.csv." if more > 0 else ""
        rows = _cells(whole.head(MOST_ROWS)).to_numpy().tolist()
        tables.append(Table(list(map(str, whole.columns)), rows, note))
    pictures = [picture(name, "", figure) for name, figure in analysis.figures.items()]
    return Section(analysis.title, [analysis.note], tables, pictures, analysis.finding)


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: floats with four significant digits, words as they are."""
    return table.map(lambda value: f"{value:.4g}" if isinstance(value, float) else str(value))


def _show(analysis: Analysis) -> None:
    from rich import table as rich_table
    from rich.box import SIMPLE_HEAD
    from rich.console import Console

    console = Console()
    console.print(analysis.title, style="bold")
    for whole in analysis.tables.values():
        table = rich_table.Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in whole:
            table.add_column(str(name), justify="right" if pd.api.types.is_numeric_dtype(whole[name]) else "left")
        for row in _cells(whole.head(SHOWN)).itertuples(index=False):
            table.add_row(*row)
        console.print(table)
    console.print(analysis.finding + "\n", highlight=False, soft_wrap=True)
