"""Messages on stderr: one line each, of text that no terminal obeys."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv2.printing import complain, described, printable, warn

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
