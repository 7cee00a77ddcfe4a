"""Text in figures: wrapped by the width of its letters, and drawn in a font that has them, or the figure says so."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.text import Text
from rich.cells import cell_len

from dsv2.plots import fonts
from dsv2.plots.fonts import LACKING, legible, lines, without_control

RARE = "\U000f0001"  # private use: no installed font has it


@pytest.fixture
def font_with_rare(tmp_path: Path) -> Iterator[str]:
    """The family of an installed font that has one letter, a full square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    glyphs = {".notdef": pen.glyph(), "square": pen.glyph()}
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap({ord(RARE): "square"})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Rare Squares", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "squares.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")
    fonts._font_with.cache_clear()
    yield "Rare Squares"
    font_manager.fontManager.ttflist[:] = before
    font_manager.fontManager._findfont_cached.cache_clear()
    fonts._font_with.cache_clear()


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Zs", "Cc"))), st.integers(2, 40))
def test_lines_are_no_wider_than_told_and_lose_only_spaces(text: str, width: int) -> None:
    wrapped = lines(text, width)
    assert all(cell_len(line) <= width for line in wrapped)
    assert "".join("".join(wrapped).split()) == "".join(without_control(text).split())


def test_letters_are_drawn_by_a_font_that_has_them(font_with_rare: str) -> None:
    figure, ax = plt.subplots()
    ax.set_title(f"a{RARE}")
    legible(figure)
    assert font_with_rare in ax.title.get_fontfamily()
    assert LACKING not in figure.get_suptitle()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of missing glyphs
        figure.canvas.draw()
    plt.close(figure)


@pytest.mark.parametrize("constrained", [True, False])
def test_a_figure_says_which_letters_no_font_has(constrained: bool) -> None:
    figure, ax = plt.subplots(layout="constrained" if constrained else None, figsize=(3, 2))
    ax.set_xlabel(f"a{RARE}")
    figure.suptitle("Found")
    before = ax.get_position().height * 2
    for _ in range(2):  # more text may follow
        legible(figure)
    assert figure.get_suptitle().split() == f"Found {LACKING} U+F0001; install one, such as Noto Sans CJK.".split()
    assert figure.get_figheight() > 2
    if not constrained:
        assert ax.get_position().height * figure.get_figheight() == pytest.approx(before)
    plt.close(figure)


def test_control_characters_are_shown_as_escapes() -> None:
    figure, ax = plt.subplots()
    ax.set_title("a\x1b[0m\tb\x00\nc")
    legible(figure)
    assert ax.get_title() == "a\\x1b[0m b\\x00\nc"
    assert not [text for text in figure.findobj(Text) if "\x1b" in text.get_text()]
    plt.close(figure)
