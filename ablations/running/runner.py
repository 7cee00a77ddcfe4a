"""Run a study's unfinished trials on an executor, and follow them through the files they write."""

import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import nullcontext
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from ablations.running.launch import executor
from ablations.running.pool import WorkerDied
from ablations.running.worker import Outcome, locked, run_trial
from ablations.trials.progress import StudyProgress
from ablations.trials.trials import RECORD, Study, Trial
from dsv2.config import plain
from dsv2.data.source import repetition_warning
from dsv2.report.terminal import animated
from dsv2.storage.rundir import finished

POLL_SECONDS = 0.5
BUSY_SECONDS = 2.0  # between two tries at a trial that another runner has locked
PLAIN_SECONDS = 15.0  # between two lines of progress without a terminal


def run_trials(study: Study, *, workers: int | None, launcher: str, console: Console) -> bool:
    """Run every unfinished trial of `study`, `workers` at a time; return True if all trials finished.

    A failing trial does not stop the others. On Ctrl-C the workers are stopped, their checkpoints kept, and
    KeyboardInterrupt is passed on to the caller.
    """
    study.remember()
    since = (study.folder / RECORD).stat().st_mtime
    todo = [trial for trial in study.trials if finished(trial.folder) is None]
    console.print(f"{len(study.trials)} trials, {len(study.trials) - len(todo)} already finished")
    if todo:
        pool = executor(launcher, workers=workers, folder=study.folder)
        try:
            with console.status("preparing the data") if animated(console) else nullcontext():
                warnings = _open_data(study)
            for warning in warnings:
                console.print(f"warning: {warning}")
            _run_all(todo, pool, console, since)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
    return all(finished(trial.folder) is not None for trial in study.trials)


def _open_data(study: Study) -> list[str]:
    """Prepare every corpus once, before trials open it concurrently; return the warnings."""
    warnings = []
    runs = dict.fromkeys(study.run_of(arm, probe) for arm in study.arms for probe in (None, *study.file.probes))
    for run in runs:
        settings = run.trainer
        source = run.data.open(
            sequence_length=settings.sequence_length, seed=0, validation_tokens=settings.validation_tokens
        )
        warnings.append(repetition_warning(source, settings.batches().total_tokens))
    return [warning for warning in dict.fromkeys(warnings) if warning is not None]


class _Turn(NamedTuple):
    """A trial waiting to be started."""

    trial: Trial
    at: float = 0.0  # earliest start, on the monotonic clock
    died: bool = False  # whether its worker died once


def _run_all(todo: list[Trial], pool: Executor, console: Console, since: float) -> None:
    waiting = [_Turn(trial) for trial in todo]
    running: dict[Future[Outcome], _Turn] = {}
    with _Watch(todo, console) as watch:
        while waiting or running:
            for turn in [turn for turn in waiting if turn.at <= time.monotonic()]:
                waiting.remove(turn)
                folder = turn.trial.folder.resolve()
                if locked(folder):  # saves submitting a job
                    waiting.append(turn._replace(at=time.monotonic() + BUSY_SECONDS))
                else:
                    running[pool.submit(run_trial, plain(turn.trial.run), folder, since)] = turn
            if not running:
                time.sleep(POLL_SECONDS)
            for future in wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                turn = running.pop(future)
                try:
                    outcome = future.result()
                except WorkerDied as error:
                    if not turn.died:
                        waiting.append(turn._replace(died=True))
                        console.print(f"  {turn.trial.name}: {error}; resuming from its checkpoint")
                        continue
                    outcome = _record(turn.trial, error)
                except CancelledError:
                    raise
                except Exception as error:  # in the launcher: the trial fails, the study goes on
                    outcome = _record(turn.trial, error)
                if outcome.status == "busy":
                    waiting.append(turn._replace(at=time.monotonic() + BUSY_SECONDS))
                else:
                    watch.ended(turn.trial, outcome)
            watch.look()


def _record(trial: Trial, error: Exception) -> Outcome:
    """Write the `result.json` of a trial that could not write its own."""
    from dsv2.training.fit import record_failure

    trial.folder.mkdir(parents=True, exist_ok=True)
    record_failure(trial.run, trial.folder, error, time.time())
    return Outcome("failed", f"{type(error).__name__}: {error}")


class _Watch:
    """Shows the progress of all trials, as a bar in a terminal and as lines elsewhere."""

    def __init__(self, todo: list[Trial], console: Console) -> None:
        self.console, self.progress = console, StudyProgress(todo)
        self.printed = time.monotonic()
        self.bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=not animated(console),
        )
        self.task = self.bar.add_task("trials", total=len(todo), rate="")

    def __enter__(self) -> "_Watch":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        if outcome.status == "finished":
            self.progress.end(trial, None)
            self.look()
            self.console.print(f"  {trial.name} finished   {self.progress.rate()}")
        else:
            text = f"{outcome.status}: {outcome.error}"
            self.progress.end(trial, text)
            self.console.print(f"  {trial.name} {text}", style="red")
        self.printed = time.monotonic()

    def look(self) -> None:
        """Update the bar; without a terminal, print a line every `PLAIN_SECONDS`."""
        self.progress.look()
        self.bar.update(self.task, completed=len(self.progress.errors), rate=self.progress.rate())
        if self.bar.disable and time.monotonic() - self.printed > PLAIN_SECONDS:
            self.console.print(f"  {self.progress.count()}   {self.progress.rate()}")
            self.printed = time.monotonic()
