"""Figures within a page: nothing of theirs leaks, their greys follow the page, and what they say is kept."""

import json
import re

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from dsv2.plots.hover import keep_colours, say, say_cells
from dsv2.report.pictures import picture
from dsv2.report.svg import greys, inline
from tests.references.pages import Page

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def drawn() -> str:
    figure, ax = plt.subplots(figsize=(3, 2))
    (points,) = ax.plot([1, 2], [3, 4], marker="o", color="#0173b2")
    say(points, ['a "quoted" <one>', "two"])
    ax.axhline(3, color="0.3")
    keep_colours(ax.text(1, 3, "kept"))
    say_cells(ax, pd.DataFrame([[0.5, float("nan")]], columns=[10, 20]), "expert", "step", "arm")
    return inline(picture("x", "", figure).svg, "f1", 360, 'said <aloud> "so"')


def test_it_is_one_element_whose_tags_nest(drawn: str) -> None:
    assert drawn.startswith('<svg class="figure" style="max-width:360px" role="img"')
    Page(drawn)
    assert 'aria-label="said &lt;aloud&gt; &quot;so&quot;"' in drawn
    assert not re.search(r"<metadata|<\?xml|<!DOCTYPE|\*\{|xmlns|\dpt\"", drawn)


def test_every_reference_has_its_target_under_the_name_of_the_figure(drawn: str) -> None:
    named = set(re.findall(r'\sid="([^"]*)"', drawn))
    asked = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn))
    assert named == asked != set()
    assert all(name.startswith("f1-") for name in named)


def test_greys_are_the_other_way_round_on_a_dark_page(drawn: str) -> None:
    assert "#0173b2" in drawn  # a colour stays
    assert not re.search(r"#([0-9a-f]{2})\1\1\b", drawn)
    assert "var(--n4c)" in drawn
    css = greys(drawn)
    assert "--n00:light-dark(#000000,#e8e8e8)" in css
    assert "--nff:light-dark(#ffffff,#16181b)" in css
    assert "--n4c:#4c4c4c" in css  # within what keeps its colours
    assert 'class="fixed"' in drawn


def test_what_points_and_cells_say_is_in_attributes(drawn: str) -> None:
    import html

    (points,), (cells,) = (re.findall(f'data-{kind}="(.*?)"', drawn) for kind in ("points", "cells"))
    assert json.loads(html.unescape(points)) == ['a "quoted" <one>', "two"]
    told = json.loads(html.unescape(cells))
    assert told == {"name": "arm", "rows": ["expert 0"], "columns": ["step 10", "step 20"], "values": [[0.5, None]]}
