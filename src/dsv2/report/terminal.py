"""Tables and lines in a terminal. Text is printed literally, without markup or highlighting."""

import sys
from collections.abc import Sequence

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 120  # columns, if stdout is not a terminal


def open_console() -> Console:
    """Open a console on stdout, as wide as the terminal or, without one, 120 columns."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, highlight=False, emoji=False)


def open_table(columns: Sequence[str], *, text: Sequence[str] = (), title: str = "", ruled: bool = False) -> Table:
    """Create an empty table; the first column and those in `text` are left-aligned, the others right-aligned.

    `ruled` draws lines between columns, for multi-line cells.
    """
    table = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=HEAVY_HEAD if ruled else SIMPLE_HEAD,
        padding=(0, 1) if ruled else (0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        left = index == 0 or column in text
        table.add_column(Text(column), justify="left" if left else "right", no_wrap=index == 0)
    return table


def add_row(table: Table, cells: Sequence[str], *, style: str | None = None) -> None:
    """Add a row of plain text."""
    table.add_row(*map(Text, cells), style=style)
