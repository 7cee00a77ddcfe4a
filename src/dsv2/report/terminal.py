"""Tables and lines in a terminal. Text is printed literally, without markup, highlighting or control characters."""

import io
import sys
from collections.abc import Sequence
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsv2.printing import printable, unless_full

PLAIN_WIDTH = 120  # columns, if stdout is not a terminal


class _Console(Console):
    """A console whose strings are text, and that outlives a full disk behind stdout."""

    def print(self, *objects: Any, **options: Any) -> None:
        with unless_full():
            super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def open_console() -> Console:
    """Open a console on stdout, as wide as the terminal or, without one, 120 columns."""
    _escape_what_stdout_lacks()
    return _Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, highlight=False, emoji=False)


def _escape_what_stdout_lacks() -> None:
    """Print characters that the encoding of stdout lacks as escapes, instead of ending with an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def animated(console: Console) -> bool:
    """Whether bars and spinners can be drawn: in a terminal, not in a file, even if colours are forced there."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def say(text: str, *, end: str = "\n") -> None:
    """Print text on stdout: exactly as it is, but printable where a terminal would obey it."""
    _escape_what_stdout_lacks()
    print(printable(text) if sys.stdout.isatty() else text, end=end, flush=True)


def open_table(columns: Sequence[str], *, text: Sequence[str] = (), title: str = "", ruled: bool = False) -> Table:
    """Create an empty table; the first column and those in `text` are left-aligned, the others right-aligned.

    `ruled` draws lines between columns, for multi-line cells.
    """
    table = Table(
        title=_literal(title, style="bold") if title else None,
        title_justify="left",
        box=HEAVY_HEAD if ruled else SIMPLE_HEAD,
        padding=(0, 1) if ruled else (0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        left = index == 0 or column in text
        table.add_column(_literal(column), justify="left" if left else "right", no_wrap=index == 0)
    return table


def add_row(table: Table, cells: Sequence[str], *, style: str | None = None) -> None:
    """Add a row of plain text."""
    table.add_row(*map(_literal, cells), style=style)


def _literal(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)
