"""Messages on stderr: one line each, of text that no terminal obeys."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv2.printing import complain, described, printable, refuse, shortened, warn, warn_once

OBEYED = "a\x1b[2Jb\x07c\rd\x9be\u202ef"
SHOWN = r"a\x1b[2Jb\x07c\rd\x9be\u202ef"


@given(st.text(alphabet=st.characters(categories=("C", "L", "P", "S", "Zs", "Zl", "Zp"))))
def test_text_holds_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", shown)
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_control_characters_of_messages_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    complain(f"error: {OBEYED}")
    warn(ValueError(OBEYED))
    assert capsys.readouterr().err == f"error: {SHOWN}\nwarning: {SHOWN}\n"


def test_what_is_stored_is_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    for message in ("a/b: damaged", "a/c: damaged", ValueError("a/b: damaged")):
        warn_once(message)
    warn("a/b: damaged")
    assert capsys.readouterr().err.splitlines() == [f"warning: a/{name}: damaged" for name in "bcb"]


def test_line_breaks_and_tabs_are_kept() -> None:
    assert printable("a\tb\nc") == "a\tb\nc"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no: such\nfile"), "ValueError: no: such"),
        (KeyError("a"), "KeyError: 'a'"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("It failed."), "ValueError: It failed"),
    ],
)
def test_an_error_is_described_in_a_line(error: Exception, text: str) -> None:
    assert described(error) == text


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("a=1:\nno"), 2, "error: a=1: no\n"),
        (NotADirectoryError(20, "Not a directory", "a/b"), 2, "error: a/b: Not a directory\n"),
        (OSError(36, "File name too long", "x" * 5000), 2, f"error: {'x' * 157}...{'x' * 40}: File name too long\n"),
        (OSError(28, "No space left on device", "a"), 1, "error: a: No space left on device\n"),
        (OSError("no number"), 1, "error: no number\n"),
    ],
)
def test_an_error_ends_a_command_in_a_line(error, status, line, capsys) -> None:
    assert refuse(error) == status
    assert capsys.readouterr() == ("", line)


def test_long_text_is_shortened_in_its_middle() -> None:
    assert shortened("x" * 200) == "x" * 200
    assert shortened("a" * 150 + "b" * 100) == "a" * 150 + "b" * 7 + "..." + "b" * 40
