"""The page's style sheet and the panes that use it."""

import matplotlib.pyplot as plt
import panel as pn
from matplotlib.figure import Figure

CSS = """
:host { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; }
h1 { font-size: 1.3rem; margin: .3rem 0; }
h2 { font-size: 1.05rem; margin: .6rem 0 .2rem; }
p { margin: .3rem 0; }
.note { color: #555; font-size: .85rem; max-width: 52rem; }
.message { border-left: 4px solid #d55e00; background: #fdf4ee; padding: .5rem 1rem; }
.verdict { border-left: 4px solid #0173b2; background: #f3f8fb; padding: .5rem 1rem; }
iframe { width: 100%; height: 46rem; border: 1px solid #ccc; }
.text { font: 15px/1.2 system-ui, sans-serif; max-height: 26rem; overflow-y: auto; }
.token { display: inline-flex; flex-direction: column; border-radius: 3px; margin: 1px 1px 3px 0; padding: 1px 1px 0;
         cursor: default; vertical-align: top; }
.token:hover { outline: 2px solid #1a1a1a; }
.token b { font-weight: 400; white-space: pre; min-height: 1.2em; }
.token i { font: 10px/1.2 system-ui, sans-serif; text-align: center; min-height: 1.2em; }
.scroll { overflow: auto; max-height: 20rem; }
table { border-collapse: collapse; font: 13px/1.35 system-ui, sans-serif; }
td, th { padding: 2px 10px 2px 0; text-align: left; border-bottom: 1px solid #eee; white-space: nowrap; }
th { border-bottom: 1px solid #888; background: #fff; position: sticky; top: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.long { white-space: normal; min-width: 12rem; }
s { color: #8a3a00; }
"""


def html_pane(content: str = "") -> pn.pane.HTML:
    """Create a full-width HTML pane. Content must be escaped by the caller."""
    return pn.pane.HTML(content, stylesheets=[CSS], sizing_mode="stretch_width", margin=(2, 10))


def picture(width: int = 760) -> pn.pane.Matplotlib:
    """Create an empty figure pane, scaled to the available width, at most `width` pixels."""
    return pn.pane.Matplotlib(format="svg", tight=True, sizing_mode="stretch_width", max_width=width, margin=(8, 10))


def drawn(figure: Figure) -> Figure:
    """Release a figure from pyplot and return it."""
    plt.close(figure)
    return figure


def labelled(name: str, widget: pn.widgets.Widget) -> pn.Column:
    """Add a label to a widget, for button groups, which do not show their name."""
    name_pane = pn.pane.HTML(name, stylesheets=[CSS], margin=(2, 10, 0, 10))
    return pn.Column(name_pane, widget, margin=0)
