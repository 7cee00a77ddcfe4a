"""A study's progress in a notebook: a bar, two small curves and a button to stop, over a runner of its own.

The runner is a process that goes on without the notebook (`ablations.running.attach`); this only reads what it writes.
"""

import io
import time
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ablations.running.attach import Runner, attach
from ablations.trials.progress import Curves, StudyProgress
from ablations.trials.trials import Study
from dsv2.metrics import quantity
from dsv2.plots import study as plots
from dsv2.plots.style import PAGE, STYLE

try:
    import ipywidgets as widgets
except ModuleNotFoundError:
    raise ModuleNotFoundError("a study in a notebook needs ipywidgets: pip install 'dsv2[notebooks]'") from None

LOOK_SECONDS = 0.5  # between two looks at the files
DRAW_SECONDS = 2.0  # between two drawings of the curves, at least
DRAW_SHARE = 0.05  # most of the time that may go into drawing
DPI = 150
WIDTH = 760  # of the curves, in CSS pixels
LOSS, IMBALANCE = "train/ce", "routing/max_violation"


class Unwatched(KeyboardInterrupt):
    """The cell was interrupted; the study goes on."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: no frames, as nothing went wrong."""
        return [str(self)]


def run_live(study: Study, *, workers: int | None, launcher: str) -> bool:
    """Start the runner of `study`, or find the one at work, and watch it to its end; True if every trial finished.

    Interrupting ends the watching alone (`Unwatched`). RunnerFailed holds the end of the log of a runner that broke.
    """
    from IPython.display import display

    runner = attach(study, workers=workers, launcher=launcher)
    view = View(study, runner)
    shown = display(view.box, display_id=True)
    try:
        while runner.alive():
            view.look()
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        raise Unwatched(
            f"No longer watching. The study goes on in process {runner.pid}: the same cell watches it again, .stop() "
            "ends it (what its trials saved stays)."
        ) from None
    view.look(last=True)
    complete = runner.check(study)
    shown.update(view.still())
    print(view.closing(complete))
    return complete


class View:
    """The widgets, and what they show."""

    def __init__(self, study: Study, runner: Runner) -> None:
        self.study, self.runner = study, runner
        self.progress = StudyProgress(study.trials)
        self.curves = Curves([trial for trial in study.trials if trial.probe is None], (LOSS, IMBALANCE))
        self.next = 0.0  # not drawn again before, by the monotonic clock
        self.bar = widgets.FloatProgress(min=0, max=1, layout={"width": "220px"})
        self.text = widgets.Label("starting")
        self.stop = widgets.Button(description="Stop", tooltip="What the trials saved stays", layout={"width": "70px"})
        self.stop.on_click(self._stop)
        self.errors = widgets.Label()
        self.image = widgets.Image(format="png", layout={"width": f"{WIDTH}px", "display": "none"})
        self.box = widgets.VBox([widgets.HBox([self.bar, self.text, self.stop]), self.errors, self.image])

    def _stop(self, button: Any) -> None:
        self.stop.disabled, self.stop.description = True, "stopping"
        self.runner.stop()

    def look(self, *, last: bool = False) -> None:
        """Read the files and show what is new; the curves only now and then."""
        self.progress.look()
        self.progress.look_for_ends(self.runner.since)
        self.bar.value = self.progress.share
        self.text.value = f"{self.progress.count()}, {self.progress.rate()}"
        self.errors.value = "; ".join(self._failures())
        started = time.monotonic()
        if (last or started >= self.next) and self.curves.look():
            self.image.value, self.image.layout.display = self._draw(), None
            seconds = time.monotonic() - started
            self.next = started + max(DRAW_SECONDS, seconds / DRAW_SHARE)

    def _failures(self) -> list[str]:
        errors = self.progress.errors
        return [f"{trial.name} {errors[trial.folder]}" for trial in self.study.trials if errors.get(trial.folder)]

    def still(self) -> Any:
        """The curves as they are in the end, which a stored notebook can show without a kernel."""
        from IPython.display import HTML, Image

        return Image(bytes(self.image.value), width=WIDTH) if self.image.value else HTML("")

    def closing(self, complete: bool) -> str:
        """What there is to say in the end."""
        lines = [self.progress.count(), *self._failures()]
        report = self.study.folder / "report" / "report.html"
        if complete or self._failures():
            return "\n".join([*lines, f"report: {report}"])
        return "\n".join([*lines, "stopped; what was saved stays, the same cell goes on from there"])

    def _draw(self) -> bytes:
        buffer = io.BytesIO()
        with plt.rc_context(STYLE):
            draw(self.curves, list(self.study.arms)).savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


def draw(curves: Curves, arms: list[str]) -> Figure:
    """Training loss and, where there are experts, imbalance: mean and range over the seeds that are so far."""
    table = curves.table()
    shown = [metric for metric in curves.metrics if metric in set(table["metric"])]
    figure = Figure(figsize=(PAGE, 2.3), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, metric in zip(axes, shown, strict=True):
        plots.loss_over_tokens(table, metric, arms=arms, ax=ax)
        ax.set_ylabel(quantity(metric).label.replace(" (", "\n("))
        legend = ax.get_legend()
        handles, labels = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        legend.remove()
    figure.legend(handles, labels, loc="outside right center")
    return figure
