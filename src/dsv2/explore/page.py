"""The page: the routing of a text by one model or two, and the reports of studies.

`view(RUN)` shows it in a notebook; `serve` starts a local server.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import panel as pn

from dsv2.explore.browse import Browser
from dsv2.explore.compare import agree
from dsv2.explore.html import DIFFERENCE, MODES, agreement, heading, painted, token_table
from dsv2.explore.look import drawn, html_pane, labelled, picture
from dsv2.explore.subject import Subject, model_at, open_subject
from dsv2.explore.trace import Trace, budget, loads, trace
from dsv2.plots.style import PAGE
from dsv2.plots.text import busiest, load_profiles, text_load
from dsv2.training.saved import open_run

WIDTH, HALF = 1120, 5.4  # maximum width of the page in pixels, and width of side-by-side figures in inches
NOTHING = "nothing"
STRETCH = {"sizing_mode": "stretch_width"}


class Weights(NamedTuple):
    """A run with the step whose weights are shown."""

    subject: Subject
    step: int | None


class Side:
    """The panes of one model."""

    def __init__(self) -> None:
        self.heading, self.text, self.figure, self.tokens = html_pane(), html_pane(), picture(), html_pane()
        parts = (self.heading, self.text, self.figure, self.tokens)
        self.column = pn.Column(*parts, min_width=480, margin=0, styles={"flex": "1 1 480px"}, **STRETCH)
        self.drawn: tuple[Any, ...] = ()  # data of the current figure

    def draw(self, load: pd.DataFrame, room: int, width: float, *most: float) -> None:
        """Redraw the figure if its data have changed; drawing is the slowest part of a refresh."""
        data = (load.to_numpy().tobytes(), room, width, most)
        if data != self.drawn:
            self.figure.object, self.drawn = drawn(text_load(load, room, width=width, busiest=most)), data


class Explorer:
    """The text tab: its widgets and results. Each visitor of the page has an own instance."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.refreshing = False
        self.traces: dict[tuple[str, str], Trace] = {}  # (name of the choice, text), for the current text only
        self.choices = _choices(subjects)
        names = list(self.choices)
        newest = [_name(subject, subject.steps[-1], subjects) for subject in subjects]
        dropping = subjects[0].moe.dropping
        capacity = dropping.capacity_factor if dropping is not None else 1.0
        self.text = pn.widgets.TextAreaInput(
            name="Text", value=subjects[0].held_out, rows=5, max_length=1_000_000, **STRETCH
        )
        self.trace = pn.widgets.Button(name="Trace", button_type="primary", width=100)
        self.a = pn.widgets.Select(name="A", options=names, value=newest[0], width=340)
        self.b = pn.widgets.Select(
            name="Compare with B", options=[NOTHING, *names], value=(*newest, NOTHING)[1], width=340
        )
        self.layer = pn.widgets.RadioButtonGroup(options=subjects[0].moe_layers)
        self.paint = pn.widgets.RadioButtonGroup(options=list(MODES))
        self.capacity = pn.widgets.FloatSlider(
            name="Capacity factor", start=0.1, end=max(4.0, capacity), step=0.05, value=capacity, width=300
        )
        self.message, self.legend, self.agreement, self.profiles = html_pane(), html_pane(), html_pane(), picture(460)
        self.sides = (Side(), Side())
        sides = pn.FlexBox(*(side.column for side in self.sides), gap="24px", **STRETCH)
        self.shown = pn.Column(self.legend, sides, self.agreement, self.profiles, **STRETCH)
        self.trace.on_click(self.refresh)
        for widget in (self.text, self.a, self.b, self.layer, self.paint):
            widget.param.watch(self.refresh, "value")
        self.capacity.param.watch(self.refresh, "value_throttled")
        self.refresh()

    def view(self) -> pn.Column:
        return pn.Column(
            self.text,
            self.trace,
            pn.FlexBox(self.a, self.b, self.capacity, gap="12px", **STRETCH),
            pn.FlexBox(labelled("Layer", self.layer), labelled("Colour tokens by", self.paint), gap="24px", **STRETCH),
            self.message,
            self.shown,
            **STRETCH,
        )

    def refresh(self, *_: Any) -> None:
        """Update the page from the widgets; errors of the text or model are shown as a message."""
        if self.refreshing:
            return  # triggered by this refresh changing the options of a widget
        self.refreshing, message = True, ""
        try:
            with pn.io.hold():  # sends all changes to the browser at once
                self._show()
        except (ValueError, OSError) as error:
            message = f'<p class="message">{html.escape(str(error))}</p>'
        finally:
            self.refreshing = False
        self.message.object = message
        self.message.visible, self.shown.visible = bool(message), not message

    def _show(self) -> None:
        names = [name for name in (self.a.value, self.b.value) if name != NOTHING]
        shown = [self.choices[name] for name in names]
        self._offer(shown[0].subject, shown[-1].subject, len(shown) > 1)
        layer, mode, capacity = self.layer.value, self.paint.value, float(self.capacity.value or 0)
        traces = [self._traced(name) for name in names]
        loaded = [loads(traced, layer, capacity) for traced in traces]
        scale = (HALF if len(names) > 1 else PAGE, *busiest(*loaded))
        legend = (MODES | DIFFERENCE)[mode] + (" A is coloured by its loss." if mode in DIFFERENCE else "")
        self.legend.object = f'<p class="note">{legend} Hover over a token to see all its experts.</p>'
        for letter, name, side, traced, load in zip("AB", names, self.sides, traces, loaded, strict=False):
            own = "loss" if mode in DIFFERENCE and letter == "A" else mode
            room = budget(traced, layer, capacity)
            side.heading.object = heading(f"{letter}: {name}" if len(names) > 1 else name, traced, load, room)
            side.text.object = painted(traced, layer, capacity, own, reference=traces[0])
            side.draw(load, room, *scale)
            side.tokens.object = f"<h2>Tokens</h2>{token_table(traced, layer, capacity)}"
        for part in (self.sides[1].column, self.agreement, self.profiles):
            part.visible = len(names) > 1
        if len(names) > 1:
            same_run = shown[0].subject.run.folder == shown[1].subject.run.folder
            first, second = traces
            self.agreement.object = agreement(first, second, agree(first, second, layer, same_run=same_run))
            self.profiles.object = drawn(load_profiles(dict(zip("AB", loaded, strict=True))))

    def _offer(self, first: Subject, second: Subject, two: bool) -> None:
        """Offer the layers that both models have, and the loss difference only if both have the same tokenizer."""
        common = [layer for layer in first.moe_layers if layer in second.moe_layers]
        if not common:
            raise ValueError("A and B have no MoE layer of the same index, so they cannot be compared")
        modes = [*MODES, *(DIFFERENCE if two and first.run.tokenizer.hash == second.run.tokenizer.hash else ())]
        for widget, options in ((self.layer, common), (self.paint, modes)):
            if widget.options != options:
                kept = widget.value if widget.value in options else options[0]
                widget.param.update(options=options, value=kept)

    def _traced(self, name: str) -> Trace:
        subject, step = self.choices[name]
        text = self.text.value or ""
        self.traces = {key: traced for key, traced in self.traces.items() if key[1] == text}
        if (name, text) not in self.traces:
            self.traces[name, text] = trace(
                model_at(subject.run, step),
                subject.run.tokenizer,
                text,
                most_tokens=subject.most_tokens,
                num_devices=subject.moe.num_devices,
            )
        return self.traces[name, text]


def build(subjects: Sequence[Subject]) -> pn.Column:
    """Build the page for one visitor."""
    tabs = pn.Tabs(("Text", Explorer(subjects).view()), ("Studies", Browser().column), dynamic=True, **STRETCH)
    title = html_pane("<h1>Where the tokens go</h1>")
    return pn.Column(title, tabs, max_width=WIDTH, styles={"margin": "0 auto", "padding": "0 16px"}, **STRETCH)


def view(*runs: str | Path) -> pn.Column:
    """Show the page in a notebook cell, for one run or two. Raises ValueError for a run that cannot be explored."""
    pn.extension()
    return build([open_subject(open_run(run)) for run in runs])


def _choices(subjects: Sequence[Subject]) -> dict[str, Weights]:
    """Return every step of every subject by name, newest first."""
    pairs = [(subject, step) for subject in subjects for step in reversed(subject.steps)]
    return {_name(subject, step, subjects): Weights(subject, step) for subject, step in pairs}


def _name(subject: Subject, step: int | None, subjects: Sequence[Subject]) -> str:
    """Return a name of a run at a step that is unique among the subjects."""
    unique = sum(other.name == subject.name for other in subjects) == 1
    run = subject.name if unique else str(subject.run.folder)
    if step is None:
        return f"{run}, imported weights"
    return f"{run}, step {step:,}" if step else f"{run}, initial weights"
