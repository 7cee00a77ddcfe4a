"""Runs a study's unfinished trials on an executor, watching them through the files they write."""

import json
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ablations.studies import Study, Trial
from ablations.trial import Outcome, run_trial
from dsv2.config import plain
from dsv2.training.result import finished

POLL_SECONDS = 0.5
BUSY_SECONDS = 2.0  # between two looks at a trial that another runner has
PLAIN_SECONDS = 15.0  # between two lines of progress where there is no terminal


def run_study(study: Study, *, workers: int | None, launcher: str, console: Console | None = None) -> bool:
    """Run every unfinished trial, then write the report and print the verdicts. True if all trials finished.

    A failing trial does not stop the others. On Ctrl-C the workers are ended, what they saved stays, and
    KeyboardInterrupt goes on to the caller.
    """
    from ablations.launch import executor

    console = console or Console()
    study.remember()
    todo = [trial for trial in study.trials if finished(trial.folder) is None]
    console.print(f"{len(study.trials)} trials, {len(study.trials) - len(todo)} already finished", highlight=False)
    if todo:
        with console.status("preparing the data"):
            study.prepare_data()
        pool = executor(launcher, workers=workers, folder=study.folder)
        try:
            _run_all(study, todo, pool, console)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
    from ablations.publish import report_study

    report_study(study, console)
    return all(finished(trial.folder) is not None for trial in study.trials)


def _run_all(study: Study, todo: list[Trial], pool: Executor, console: Console) -> None:
    waiting = deque(todo)
    running: dict[Future[Outcome], Trial] = {}
    with _Watch(study, todo, console) as watch:
        while waiting or running:
            while waiting:
                trial = waiting.popleft()
                running[pool.submit(run_trial, plain(trial.run), trial.folder)] = trial
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            busy = False
            for future in done:
                trial, outcome = running.pop(future), _outcome(future)
                if outcome.status == "busy":
                    busy = True
                    waiting.append(trial)
                else:
                    watch.ended(trial, outcome)
            watch.look()
            if busy and not running:
                time.sleep(BUSY_SECONDS)


def _outcome(future: "Future[Outcome]") -> Outcome:
    try:
        return future.result()
    except Exception as error:  # the worker died: the trial failed, the study goes on
        return Outcome("failed", f"{type(error).__name__}: {error}")


class _Watch:
    """Progress over all trials in tokens, read from their `metrics.jsonl`; a bar on a terminal, lines elsewhere."""

    def __init__(self, study: Study, todo: list[Trial], console: Console) -> None:
        self.todo, self.console = todo, console
        self.totals = {trial.folder: trial.run.trainer.batches().total_tokens for trial in todo}
        self.seen = {folder: tokens_logged(folder) for folder in self.totals}  # what earlier attempts left
        self.before, self.started, self.printed = sum(self.seen.values()), time.monotonic(), time.monotonic()
        self.finished, self.failed = 0, 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("trials", total=len(todo), rate="")

    def __enter__(self) -> "_Watch":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        self.seen[trial.folder] = self.totals[trial.folder]
        self.finished += outcome.status == "finished"
        self.failed += outcome.status != "finished"
        if outcome.status == "finished":
            self.console.print(f"  {trial.name} finished   {self._rate()}", highlight=False)
        else:
            self.console.print(f"  {trial.name} {outcome.status}: {outcome.error}", style="red", highlight=False)
        self.printed = time.monotonic()

    def look(self) -> None:
        """Update the bar; without a terminal print a line now and then."""
        for folder, total in self.totals.items():
            if self.seen[folder] < total:
                self.seen[folder] = tokens_logged(folder)
        self.bar.update(self.task, completed=self.finished + self.failed, rate=self._rate())
        if not self.console.is_terminal and time.monotonic() - self.printed > PLAIN_SECONDS:
            self.console.print(f"  {self.finished} of {len(self.todo)} trials   {self._rate()}", highlight=False)
            self.printed = time.monotonic()

    def _rate(self) -> str:
        seconds = time.monotonic() - self.started
        done, total = sum(self.seen.values()), sum(self.totals.values())
        rate = (done - self.before) / seconds
        if rate <= 0:
            return "starting"
        left = int((total - done) / rate)
        return f"{done / total:.0%} of {total / 1e6:,.1f}M tokens, {rate:,.0f} tok/s, {left // 60}:{left % 60:02d} left"


def tokens_logged(folder: Path) -> int:
    """How far a trial's last complete line of metrics says it is, in tokens."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["tokens"]) if lines else 0
