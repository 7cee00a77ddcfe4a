"""A study's progress in a notebook: a bar, small curves with arm minus baseline beside them, and a stop button.

The trials run in a separate process that outlives the notebook (`ablations.running.attach`); this reads its files.
"""

import contextlib
import html
import io
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ablations.running.attach import Runner, attach
from ablations.trials.progress import Curves, StudyProgress
from ablations.trials.trials import Study
from dsv2.alignment.grpo import GRPO
from dsv2.metrics import quantity
from dsv2.plots import study as plots
from dsv2.plots.fonts import legible
from dsv2.plots.style import PAGE, STYLE
from dsv2.printing import printable

try:
    import ipywidgets as widgets
    from IPython.core.getipython import get_ipython
except ModuleNotFoundError:
    raise ModuleNotFoundError("a study in a notebook needs ipywidgets: pip install 'dsv2[notebooks]'") from None

SUBSHELL_SECONDS = 10.0  # for the kernel to start a thread
LOOK_SECONDS = 0.5  # between two reads of the files
DRAW_SECONDS = 2.0  # minimum between two drawings of the curves
DRAW_SHARE = 0.05  # maximum share of time spent drawing
DPI = 150
WIDTH = 760  # of the curves, in CSS pixels
LOSS, IMBALANCE = "train/ce", "routing/max_violation"
ANSWERS = (LOSS, "grpo/reward", "grpo/kl", "grpo/length")  # of policies that are trained on their own answers


class Unwatched(KeyboardInterrupt):
    """The cell was interrupted; the study goes on."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: the message without a traceback, since nothing went wrong."""
        return [str(self)]


def run_live(study: Study, *, workers: int | None, launcher: str) -> bool:
    """Start the runner of `study`, or reattach to it, and watch it to its end; return True if every trial finished.

    Raises Unwatched when interrupted, while the study goes on, and RunnerFailed with the end of the runner's log if it
    crashed.
    """
    from IPython.display import display

    runner = attach(study, workers=workers, launcher=launcher)
    view = View(study, runner)
    shown = display(view.box, display_id=True)
    try:
        with answered(view.stop):
            while runner.alive():
                view.look()
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        raise Unwatched(
            f"No longer watching. The study goes on in process {runner.pid}: run the cell again to watch it, or stop "
            "it with .stop() (progress is saved)."
        ) from None
    view.look(last=True)
    complete = runner.check(study)
    shown.update(view.still())
    print(printable(view.closing(complete)))
    return complete


@contextlib.contextmanager
def answered(button: widgets.Button) -> Iterator[None]:
    """Answer clicks while the cell runs, in a thread of the kernel (a subshell); by default they wait for its end.

    ipykernel has no public way to choose the subshell that a widget's messages go to.
    """
    channel = get_ipython().kernel.shell_channel_thread  # type: ignore[union-attr]
    manager, made = channel.manager, Future[str]()
    channel.io_loop.add_callback(lambda: made.set_result(manager._create_subshell()))
    subshell = made.result(SUBSHELL_SECONDS)
    button.comm._reply_subshell_id = subshell
    try:
        yield
    finally:
        button.comm._reply_subshell_id = None
        channel.io_loop.add_callback(manager._delete_subshell, subshell)


def watched(study: Study) -> tuple[str, ...]:
    """Return the metrics whose curves are drawn: of answers, if any arm draws some."""
    return (
        ANSWERS if any(isinstance(run.objective, GRPO.Config) for run in study.configs.values()) else (LOSS, IMBALANCE)
    )


class View:
    """The widgets and their contents."""

    def __init__(self, study: Study, runner: Runner) -> None:
        self.study, self.runner = study, runner
        self.progress = StudyProgress(study.trials)
        self.curves = Curves([trial for trial in study.trials if trial.probe is None], watched(study))
        self.next = 0.0  # earliest time of the next drawing, on the monotonic clock
        self.bar = widgets.FloatProgress(min=0, max=1, layout={"width": "220px"})
        self.text = widgets.Label("starting")
        self.stop = widgets.Button(description="Stop", tooltip="Progress is saved", layout={"width": "70px"})
        self.stop.on_click(self._stop)
        self.errors = widgets.HTML()  # a Label would typeset what lies between dollars
        self.image = widgets.Image(format="png", layout={"width": f"{WIDTH}px", "display": "none"})
        self.box = widgets.VBox([widgets.HBox([self.bar, self.text, self.stop]), self.errors, self.image])

    def _stop(self, button: Any) -> None:
        self.stop.disabled, self.stop.description = True, "stopping"
        self.runner.stop()

    def look(self, *, last: bool = False) -> None:
        """Read the files and show what is new; the curves are redrawn less often."""
        self.progress.look()
        self.progress.look_for_ends(self.runner.since)
        self.bar.value = self.progress.share
        self.text.value = self.runner.waits() or f"{self.progress.count()}, {self.progress.rate()}"
        self.errors.value = html.escape("; ".join(self._failures()))
        started = time.monotonic()
        if (last or started >= self.next) and self.curves.look():
            self.image.value, self.image.layout.display = self._draw(), None
            seconds = time.monotonic() - started
            self.next = started + max(DRAW_SECONDS, seconds / DRAW_SHARE)

    def _failures(self) -> list[str]:
        errors = self.progress.errors
        return [f"{trial.name} {errors[trial.folder]}" for trial in self.study.trials if errors.get(trial.folder)]

    def still(self) -> Any:
        """Return the final curves as an image, which a stored notebook shows without a kernel."""
        from IPython.display import HTML, Image

        return Image(bytes(self.image.value), width=WIDTH) if self.image.value else HTML("")

    def closing(self, complete: bool) -> str:
        """Return the closing lines: counts, failures and the path of the report."""
        lines = [self.progress.count(), *self._failures()]
        report = self.study.folder / "report" / "report.html"
        if complete or self._failures():
            return "\n".join([*lines, f"report: {report}"])
        return "\n".join([*lines, "stopped; progress is saved, run the cell again to resume"])

    def _draw(self) -> bytes:
        buffer = io.BytesIO()
        with plt.rc_context(STYLE):
            draw(self.curves, list(self.study.arms), self.study.file.baseline).savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()


def draw(curves: Curves, arms: list[str], baseline: str) -> Figure:
    """Draw what is watched, as training loss and, for MoE models, imbalance: mean and range over the seeds so far.

    Between them stands the loss of each arm minus that of the baseline, once a seed of both has begun.
    """
    table = curves.table()
    shown = [metric for metric in curves.metrics if metric in set(table["metric"])]
    losses = table[table["metric"] == LOSS]
    own = losses[losses["arm"] == baseline]
    paired = losses[
        (losses["arm"] != baseline) & losses["seed"].isin(own["seed"]) & losses["tokens"].isin(own["tokens"])
    ]
    figure = Figure(figsize=(PAGE, 2.3), layout="constrained")
    axes = list(figure.subplots(1, len(shown) + bool(len(paired)), squeeze=False)[0])
    handles, labels = list[Any](), list[str]()
    if len(paired):
        beside = axes.pop(1)
        plots.difference_over_tokens(table, baseline, LOSS, arms=arms, ax=beside)
        beside.get_legend().remove()
        beside.set_ylabel(f"{quantity(LOSS).name},\narm - {baseline}")
    for ax, metric in zip(axes, shown, strict=True):
        plots.loss_over_tokens(table, metric, arms=arms, ax=ax)
        ax.set_ylabel(quantity(metric).label.replace(" (", "\n("))
        legend = ax.get_legend()
        texts = [text.get_text() for text in legend.get_texts()]
        if len(texts) > len(labels):  # an arm need not log every metric
            handles, labels = legend.legend_handles, texts
        legend.remove()
    figure.legend(handles, labels, loc="outside right center")
    legible(figure)
    return figure
