"""Text in figures: wrapped by its width as drawn, and in fonts that have its letters."""

import textwrap
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from rich.cells import cell_len, chop_cells

from dsv2.printing import printable

LACKING = "No installed font has"  # starts the note below a figure
NOTE_LINE = 0.15  # height in inches
MOST_NAMED = 5  # letters in the note
_HALF = "\0"  # stands for the second half of a wide letter while lines are broken


def lines(text: str, width: int) -> list[str]:
    """Wrap text into lines of at most `width` letters; Chinese ones count twice, as they are drawn."""
    wide = "".join(letter + _HALF * (cell_len(letter) - 1) for letter in without_control(text))
    wrapped = [line.replace(_HALF, "") for line in textwrap.wrap(wide, width)]
    return [part for line in wrapped for part in (chop_cells(line, width) if cell_len(line) > width else [line])]


def without_control(text: str) -> str:
    """Replace control characters by spaces or their escapes, since no font has them."""
    return printable(text.replace("\t", " "))


def legible(figure: Figure) -> None:
    """Draw letters that the style's font lacks in an installed font that has them; without one, the figure says so."""
    missing: dict[str, None] = {}
    for text in figure.findobj(Text):
        shown = without_control(text.get_text())
        if shown != text.get_text():
            text.set_text(shown)
        if shown.isascii():
            continue
        families = text.get_fontfamily()
        known = _letters(tuple(families))
        others = {letter: _font_with(letter) for letter in shown if ord(letter) not in known and letter != "\n"}
        text.set_fontfamily(list(dict.fromkeys([*families, *filter(None, others.values())])))
        missing |= {letter: None for letter, family in others.items() if family is None}
    if missing:
        named = [f"U+{ord(letter):04X}" for letter in missing]
        some = ", ".join(named[:MOST_NAMED]) + (", ..." if len(named) > MOST_NAMED else "")
        _note(figure, f"{LACKING} {some}; install one, such as Noto Sans CJK.")


def _note(figure: Figure, note: str) -> None:
    """Write a note below the title of the figure, which grows by its height; an earlier note is replaced."""
    title, found, _ = figure.get_suptitle().partition(LACKING)
    wrapped = lines(note, int(15.5 * figure.get_figwidth()))
    figure.suptitle("\n".join([*title.splitlines(), *wrapped]), x=0.01, ha="left", fontsize=8)
    if found:
        return
    height = figure.get_figheight()
    grown = height + NOTE_LINE * len(wrapped)
    figure.set_figheight(grown)
    if not figure.get_constrained_layout():
        for ax in figure.axes:
            left, bottom, width, tall = ax.get_position().bounds
            ax.set_position((left, bottom * height / grown, width, tall * height / grown))


@cache
def _letters(families: tuple[str, ...]) -> frozenset[int]:
    """Return the code points that the fonts of some families have."""
    paths = [font_manager.findfont(FontProperties(family=[family])) for family in families]
    return frozenset[int]().union(*(font_manager.get_font(path).get_charmap() for path in paths))


@cache
def _font_with(letter: str) -> str | None:
    """Return the family of an installed font that has a letter."""
    for font in font_manager.fontManager.ttflist:
        if "Last Resort" not in font.name and ord(letter) in font_manager.get_font(font.fname).get_charmap():
            return str(font.name)
    return None
