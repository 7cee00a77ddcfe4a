"""Tokens painted by where they are sent: in HTML, and the same in print."""

import re

import numpy as np
import pytest

import dsv2
from dsv2.plots.tokens import colours, paint_html, paint_tokens, paints
from tests.references.analyses import four_tokens

TOKENS = ["We", " <hold>", " these\n", " truths"]


def test_a_token_takes_the_colour_of_its_choice() -> None:
    def groups(**how):  # type: ignore[no-untyped-def]
        return [paint.group for paint in paints(TOKENS, four_tokens(), **how)]

    assert groups(by="expert") == [0, 1, 2, 3]
    assert groups(by="expert", choice=1) == [3, 0, 1, 2]
    assert groups(by="device", num_devices=2) == [0, 0, 1, 1]
    assert groups(by="device", num_devices=2, choice=1) == [1, 0, 0, 1]
    assert groups(by="expert", highlight=2) == [None, None, 2, None]


def test_what_is_dropped_is_struck_and_said() -> None:
    struck = [[p.struck for p in paints(TOKENS, four_tokens(), choice=choice)] for choice in (0, 1)]
    assert struck == [[False] * 4, [False, False, False, True]]
    notes = [paint.note for paint in paints(TOKENS, four_tokens(), num_devices=2)]
    assert notes[3].splitlines() == ["expert 3 on device 1, gate 0.500", "expert 2 on device 1, gate 0.300, dropped"]
    assert not any(paint.struck for paint in paints(TOKENS, four_tokens(dropped=False), choice=1))


def test_html_escapes_the_text_and_shows_line_breaks() -> None:
    markup = str(paint_html(TOKENS, four_tokens(), by="device", num_devices=2, choice=1, title="a < b"))
    assert "&lt;hold&gt;" in markup
    assert "<hold>" not in markup
    assert "a &lt; b" in markup
    assert "these↵\n" in markup
    assert markup.count("line-through") == 1
    assert len(re.findall(r'title="expert', markup)) == 4
    assert paint_html(TOKENS, four_tokens())._repr_html_().startswith("<div")


def test_print_has_the_same_tokens_colours_and_strokes() -> None:
    figure = paint_tokens(TOKENS, four_tokens(), by="device", num_devices=2, choice=1, title="Two devices")
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts][-4:] == ["We", " <hold>", " these↵", " truths"]
    light = colours(2)
    faces = [patch.get_facecolor()[:3] for patch in ax.patches]
    np.testing.assert_allclose(faces, [light[0], light[1], light[1], light[0], light[0], light[1]])  # key, then tokens
    assert len(ax.lines) == 1
    assert ax.texts[-1].get_position()[1] > ax.texts[-2].get_position()[1]  # after the line break


def test_lines_are_as_long_as_the_figure_is_wide() -> None:
    words = [" word"] * 100
    many = dsv2.Routing(*(tensor.repeat(1, 25, 1) for tensor in four_tokens()))  # type: ignore[union-attr]
    figure = paint_tokens(words, many, by="expert", width=3.4)
    (ax,) = figure.axes
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    right = max(text.get_window_extent(renderer).x1 for text in ax.texts)
    assert 0.9 * figure.bbox.x1 < right <= figure.bbox.x1


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"by": "layer"}, "by"),
        ({"num_devices": 3}, "num_devices"),
        ({"sequence": 1}, "sequence"),
        ({"choice": 2}, "choice"),
    ],
)
def test_what_does_not_fit_is_named(how: dict, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}="):
        paints(TOKENS, four_tokens(), **how)
    with pytest.raises(ValueError, match=r"^tokens=3"):
        paints(TOKENS[:3], four_tokens())
