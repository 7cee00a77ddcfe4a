"""Tables and lines in a terminal: text is shown as it was written, in as many columns as there are."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from dsv2.report.terminal import add_row, animated, open_console, open_table, say

ODD = "[red]a_b[/red] :smile: 12% $x$"


def printed(*shown: object, width: int = 120) -> list[str]:
    """The lines of a console of ours, without the spaces at their ends."""
    console = open_console()
    console.file, console.width = io.StringIO(), width
    for each in shown:
        console.print(each)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_text_is_shown_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a terminal with colours, where rich would highlight numbers and quoted words."""
    text = f"{ODD} 3.5 'x' True"
    assert printed(text) == [text]
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert open_console().color_system is not None
    assert printed(text) == [text]


def test_the_console_writes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    open_console().print("x")
    assert capsys.readouterr() == ("x\n", "")


def test_without_a_terminal_lines_have_120_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")  # what a terminal would have
    assert open_console().width == 120
    assert printed("word " * 40)[0] == ("word " * 24).rstrip()


def test_a_terminal_is_asked_for_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "50")
    assert open_console().width == 50


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    table = open_table(["arm", "loss", "verdict"], text=["verdict"])
    add_row(table, ["none", "3.1", "-"])
    add_row(table, ["paper_limited", "10.25", "better"])
    header, rule, *rows = [line for line in printed(table) if line.strip()]
    assert header.split() == ["arm", "loss", "verdict"]
    assert set(rule.strip()) == {"─"}
    first, second = rows
    assert first.index("none") == second.index("paper_limited") == header.index("arm")
    assert first.index("3.1") + 3 == second.index("10.25") + 5 == header.index("loss") + 4
    assert first.index("-") == second.index("better") == header.index("verdict")


def test_cells_columns_and_titles_are_no_markup_on_any_console() -> None:
    table = open_table([ODD, "[b]x[/b]"], title=f"The {ODD}")
    add_row(table, [f"is {ODD}", "[b]1[/b]"])
    other = Console(file=io.StringIO(), width=120)  # one that reads markup
    other.print(table)
    for lines in (printed(table), other.file.getvalue().splitlines()):
        title, header, rule, row = [line.strip() for line in lines if line.strip()]
        assert title == f"The {ODD}"
        assert header.split("  ")[0] == ODD
        assert header.endswith("[b]x[/b]")
        assert row.startswith(f"is {ODD}")
        assert row.endswith("[b]1[/b]")
        assert set(rule) == {"─"}
    assert printed(table)[0].startswith("The")  # the title stands at the left


def test_lines_between_columns_are_drawn_where_asked_for() -> None:
    for ruled in (False, True):
        table = open_table(["arm", "loss"], ruled=ruled)
        add_row(table, ["none", "3.1"])
        assert any("│" in line for line in printed(table)) == ruled


def test_the_first_column_is_not_broken_where_the_terminal_is_narrow() -> None:
    table = open_table(["arm", "what it is"], text=["what it is"])
    add_row(table, ["a name of several words", "the balance losses of the paper with at most three devices"])
    lines = printed(table, width=40)
    assert max(map(len, lines)) <= 40
    assert sum("a name of several words" in line for line in lines) == 1
    assert len([line for line in lines if line.strip()]) > 3  # the other column was


def test_a_row_may_have_a_style() -> None:
    table = open_table(["arm"])
    add_row(table, ["plain"])
    add_row(table, ["faint"], style="dim")
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard", width=40).print(table)
    (plain,) = [line for line in out.getvalue().splitlines() if "plain" in line]
    (faint,) = [line for line in out.getvalue().splitlines() if "faint" in line]
    assert "\x1b[2m" in faint
    assert "\x1b[2m" not in plain


# ---- what a terminal would obey --------------------------------------------------------------------------------------

OBEYED = "a\x1b[2Jb\x07c\rd\x9be\u202ef"
SHOWN = r"a\x1b[2Jb\x07c\rd\x9be\u202ef"


def test_control_characters_are_shown_wherever_text_is_printed() -> None:
    table = open_table([OBEYED], title=OBEYED)
    add_row(table, [OBEYED])
    assert [line.strip() for line in printed(OBEYED, table) if SHOWN in line] == [SHOWN] * 4


def test_text_is_exact_in_a_file_and_printable_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say(OBEYED)
    assert capsys.readouterr().out == f"{OBEYED}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    say(OBEYED)
    assert capsys.readouterr().out == f"{SHOWN}\n"


def test_a_terminal_of_few_letters_gets_escapes() -> None:
    code = "from dsv2.report.terminal import open_console, say; open_console().print('无 \\udcff'); say('无')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert done.stdout == b"\\u65e0 \\udcff\n\\u65e0\n"


def test_nothing_moves_outside_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although kernels and CI force colours, spinners in a file are a line per frame."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = open_console()
    console.file = io.StringIO()
    assert not animated(console)
    console.file.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "xterm")
    assert animated(console)
