"""The page without a server: its widgets drive the same functions in a notebook."""

import re
from pathlib import Path

from dsv2.explore.page import view


def test_a_notebook_gets_the_same_page(run: Path) -> None:
    page = view(run)
    text = next(iter(page.select(lambda part: getattr(part, "name", "") == "Text")))
    paintings = lambda: [pane.object for pane in page.select() if 'class="text"' in str(getattr(pane, "object", ""))]  # noqa: E731
    before = paintings()
    text.value = "Bad bed."
    assert len(before) == len(paintings()) == 1
    assert before != paintings()
    assert "Bad bed." in re.sub(r"<[^>]*>|\d", "", paintings()[0])
