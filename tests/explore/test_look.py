"""Panes of the page: HTML in the page's style, figures that nothing keeps once they are shown."""

import matplotlib.pyplot as plt

from dsv2.explore.look import CSS, drawn, html_pane, labelled, picture


def test_panes_wear_the_page_s_style_and_fill_their_place() -> None:
    pane = html_pane("<p>text</p>")
    assert (pane.object, pane.stylesheets, pane.sizing_mode) == ("<p>text</p>", [CSS], "stretch_width")
    assert picture(320).max_width == 320
    assert [part.object for part in labelled("Layer", html_pane("widget"))] == ["Layer", "widget"]


def test_a_figure_that_is_shown_is_not_kept() -> None:
    figure = plt.figure()
    assert drawn(figure) is figure
    assert not plt.fignum_exists(figure.number)
