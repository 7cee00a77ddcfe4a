"""Run a study's unfinished trials on an executor, and follow them through the files they write."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from ablations.running.launch import executor
from ablations.running.pool import WorkerDied, WorkerStopped
from ablations.running.worker import LOG, Outcome, run_trial
from ablations.trials.kernels import like_finished
from ablations.trials.progress import StudyProgress
from ablations.trials.record import RECORD
from ablations.trials.trials import Study, Trial
from dsv2.config import plain
from dsv2.data.source import repetition_warning
from dsv2.metrics import quantity
from dsv2.report.terminal import animated
from dsv2.storage.locks import Meeting, Patience, is_held, meet
from dsv2.storage.rundir import LOCK, finished, read_result, runs_root
from dsv2.storage.space import DiskFull, has_space, naming_full_disk
from dsv2.training.run import Run

POLL_SECONDS = 0.5
BUSY_SECONDS = 2.0  # between two tries at a trial that another runner has locked
SPACE_SECONDS = 5.0  # between two looks at a full disk
PLAIN_SECONDS = 15.0  # between two lines of progress without a terminal
MOST_NAMES = 3  # of trials in one line
MOST_FAILED = 5  # trials that are named at the end

T = TypeVar("T")


def run_trials(
    study: Study,
    *,
    workers: int | None,
    launcher: str,
    console: Console,
    enough: Callable[[], bool] = lambda: False,
) -> bool:
    """Run every unfinished trial of `study`, `workers` at a time; return True if all trials finished.

    The rest is stopped, checkpoints kept, as soon as `enough`, which is called after every trial, returns True.
    A failing trial does not stop the others, and neither does one that another runner holds: it is waited for unless
    that runner has stopped. A full disk is waited for. On Ctrl-C the workers are stopped, their checkpoints kept, and
    KeyboardInterrupt is passed on to the caller. Raises Busy if a process stopped while it prepared the data, and
    ConfigError if the trials that are left ask for other kernels than those that finished.
    """
    with_space(study.remember, console)
    since = (study.folder / RECORD).stat().st_mtime
    results = {trial.key: finished(trial.folder) for trial in study.trials}  # reads all their files
    left = [trial for trial in study.trials if results[trial.key] is None]
    todo = like_finished(study, left, filter(None, results.values()))
    console.print(f"{len(study.trials)} trials, {len(study.trials) - len(todo)} already finished")
    if todo:
        pool = executor(launcher, workers=workers, folder=study.folder, trials=len(todo))
        try:
            with console.status("preparing the data") if animated(console) else nullcontext():
                warnings = with_space(lambda: _open_data(study), console)
            for warning in warnings:
                console.print(f"warning: {warning}")
            stopped = _run_all(todo, pool, console, since, enough)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown(cancel_futures=stopped)
    unfinished = [trial for trial in study.trials if finished(trial.folder) is None]
    for line in failures(study, unfinished):
        console.print(line, style="red", soft_wrap=True)
    return not unfinished


def failures(study: Study, trials: Sequence[Trial]) -> list[str]:
    """Say which of these trials failed, why, and how to look at them; trials that did not end are left out."""
    ended = [(trial, result) for trial in trials if (result := read_result(trial.folder)).get("error")]
    if not ended:
        return []
    lines = [f"{len(ended)} of {len(study.trials)} trials failed:"]
    lines += [f"  {trial.name}: {str(result['error']).splitlines()[0]}" for trial, result in ended[:MOST_FAILED]]
    lines += [f"  and {len(ended) - MOST_FAILED} more"] if len(ended) > MOST_FAILED else []
    first = ended[0][0]
    return [*lines, f"look at one: python -m dsv2 show {first.folder}; its log: {first.folder / LOG}",
            "the same command tries them again"]  # fmt: skip


def with_space(action: Callable[[], T], console: Console) -> T:
    """Return what `action` returns; it is repeated for as long as it fails because the disk is full."""
    while True:
        try:
            with naming_full_disk(runs_root()):
                return action()
        except DiskFull as error:
            console.print(f"{error}; waiting for space", soft_wrap=True)
            folder = next(parent for parent in error.path.absolute().parents if parent.is_dir())
            while not has_space(folder, error.needed):
                time.sleep(SPACE_SECONDS)
            console.print("there is space again; going on")


def _open_data(study: Study) -> list[str]:
    """Prepare every corpus once, before trials open it concurrently; return the warnings.

    Other data than those of an arm's origin are left to its trials, which read them with a tokenizer that is not there
    yet.
    """
    warnings, runs = [], list[Run.Config]()
    for arm, spec in study.arms.items():
        for probe in (None, *study.file.probes):
            run = study.run_of(arm, probe)
            if spec.init_from is None or run.data == study.run_of(spec.init_from, probe).data:
                runs.append(run)
    for run in dict.fromkeys(runs):
        settings = run.trainer
        source = run.data.open(
            sequence_length=settings.sequence_length, seed=0, validation_tokens=settings.validation_tokens
        )
        warnings.append(repetition_warning(source, settings.batches().total_tokens))
    return [warning for warning in dict.fromkeys(warnings) if warning is not None]


class OriginFailed(RuntimeError):
    """The trial from whose weights another one was to start has failed."""


class _Turn(NamedTuple):
    """A trial waiting to be started."""

    trial: Trial
    at: float = 0.0  # earliest start, on the monotonic clock
    died: bool = False  # whether its worker died once
    meeting: Meeting | None = None  # with the process that holds it
    needed: int = 0  # bytes it waits for on a full disk

    def blocked(self) -> "_Turn | None":
        """Return the turn to be taken later if the trial cannot be started now."""
        if self.needed and not has_space(self.trial.folder, self.needed):
            return self._replace(at=time.monotonic() + SPACE_SECONDS)
        if is_held(lock := self.trial.folder / LOCK):
            return self._replace(at=time.monotonic() + BUSY_SECONDS, meeting=meet(lock, "this trial"), needed=0)
        return None


def _run_all(todo: list[Trial], pool: Executor, console: Console, since: float, enough: Callable[[], bool]) -> bool:
    """Run the trials to their ends; return True if some were not needed."""
    waiting = [_Turn(trial) for trial in todo]
    running: dict[Future[Outcome], _Turn] = {}
    patience = Patience()
    with _Watch(todo, console) as watch:
        while waiting or running:
            for turn in [turn for turn in waiting if turn.at <= time.monotonic()]:
                if watch.waits_for_origin(turn.trial):
                    continue
                waiting.remove(turn)
                if (failure := watch.failed_origin(turn.trial)) is not None:
                    _give_up(turn, failure, watch, console)
                    continue
                if (later := turn.blocked()) is not None:  # saves submitting a job
                    watch.met(later)
                    waiting.append(later)
                    continue
                if turn.needed:
                    watch.say(turn.trial, "there is space again; resuming from its checkpoint")
                turn = turn._replace(meeting=None, needed=0)
                running[pool.submit(run_trial, plain(turn.trial.run), turn.trial.folder.resolve(), since)] = turn
            first = [turn for turn in waiting if not watch.waits_for_origin(turn.trial)]
            idle = all(turn.meeting is not None and turn.meeting.idle for turn in first)
            if patience.over(not running and idle):
                watch.leave(waiting)
                return False
            if not running:
                time.sleep(POLL_SECONDS)
            for future in wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                turn = running.pop(future)
                outcome = _outcome(future, turn, console)
                if (later := watch.ended(turn, outcome)) is not None:
                    waiting.append(later)
                elif enough():
                    return True
            watch.look(waiting)
    return False


def _outcome(future: Future[Outcome], turn: _Turn, console: Console) -> Outcome:
    """Return how a trial ended; what could not record its own end is recorded here."""
    try:
        return future.result()
    except CancelledError:
        raise
    except WorkerStopped as error:
        return Outcome("interrupted", str(error))
    except WorkerDied as error:
        if not turn.died:
            return Outcome("died", str(error))
        failure: Exception = error
    except Exception as error:  # in the launcher: the trial fails, the study goes on
        failure = error
    with_space(lambda: _record(turn.trial, failure), console)
    return Outcome("failed", f"{type(failure).__name__}: {failure}")


def _give_up(turn: _Turn, failure: OriginFailed, watch: "_Watch", console: Console) -> None:
    """End a trial that cannot start, since its origin has failed."""
    with_space(lambda: _record(turn.trial, failure), console)
    watch.ended(turn, Outcome("failed", str(failure)))


def _record(trial: Trial, error: Exception) -> None:
    """Write the `result.json` of a trial that could not write its own."""
    from dsv2.training.fit import record_failure

    trial.folder.mkdir(parents=True, exist_ok=True)
    record_failure(trial.run, trial.folder, error, time.time())


class _Watch:
    """Shows the progress of all trials, as a bar in a terminal and as lines elsewhere."""

    def __init__(self, todo: list[Trial], console: Console) -> None:
        self.console, self.progress = console, StudyProgress(todo)
        self.printed = time.monotonic()
        self.known: set[tuple[str, bool]] = set()  # holders of trials that were told of
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

    def say(self, trial: Trial, text: str, style: str | None = None) -> None:
        self.console.print(f"  {trial.name}: {text}", style=style, soft_wrap=True)  # commands are copied from it

    def waits_for_origin(self, trial: Trial) -> bool:
        """Whether a trial that this one starts from, or reads, has not ended yet."""
        return bool(self._pending(trial))

    def _pending(self, trial: Trial) -> list[Trial]:
        """Return the trials that this one needs and that have not ended yet."""
        progress = self.progress
        return [each for each in trial.origins if each.folder in progress.totals and each.folder not in progress.errors]

    def failed_origin(self, trial: Trial) -> OriginFailed | None:
        """Return why a trial cannot start, if one that it needs has failed."""
        for origin in trial.origins:
            if self.progress.errors.get(origin.folder) is not None:
                return OriginFailed(f"it {_needs(trial, origin)} {origin.name}, which has failed")
        return None

    def met(self, turn: _Turn) -> None:
        """Tell who holds a trial, once for every process and again if it stops."""
        if turn.meeting is not None and (known := (turn.meeting.advice, turn.meeting.idle)) not in self.known:
            self.known.add(known)
            self.say(turn.trial, f"left for later: {turn.meeting}")

    def ended(self, turn: _Turn, outcome: Outcome) -> _Turn | None:
        """Tell how a trial ended; return its next turn if it has not."""
        trial, now = turn.trial, time.monotonic()
        if outcome.status == "busy":
            later = turn._replace(at=now + BUSY_SECONDS, meeting=outcome.meeting)
            self.met(later)
            return later
        if outcome.status == "full":
            self.say(trial, f"{outcome.error}; waiting for space")
            return turn._replace(needed=outcome.needed)
        if outcome.status in ("interrupted", "died"):
            self.say(trial, f"{outcome.error}; resuming from its checkpoint")
            return turn._replace(died=turn.died or outcome.status == "died")
        if outcome.status == "finished":
            self.progress.end(trial, None)
            self.look()
            self.console.print(f"  {trial.name} finished{_measured(trial)}   {self.progress.rate()}")
        else:
            text = f"{outcome.status}: {outcome.error}"
            self.progress.end(trial, text)
            self.console.print(f"  {trial.name} {text}", style="red")
        self.printed = now
        return None

    def leave(self, waiting: Sequence[_Turn]) -> None:
        """Tell which trials were not run, and who holds them."""
        self.look(waiting)
        for turn in waiting:
            names = [f"{_needs(turn.trial, each)} {each.name}" for each in self._pending(turn.trial)]
            why = turn.meeting or (f"it {' and '.join(names)}, which was not run" if names else "")
            self.say(turn.trial, f"not run: {why}", "red")
        self.console.print("  no other trial is left; run the same command again for these", style="red")

    def look(self, waiting: Sequence[_Turn] = ()) -> None:
        """Update the bar; without a terminal, print a line every `PLAIN_SECONDS`."""
        self.progress.look()
        rate = self.progress.rate() + _waits(waiting)
        self.bar.update(self.task, completed=len(self.progress.errors), rate=rate)
        if self.bar.disable and time.monotonic() - self.printed > PLAIN_SECONDS:
            self.console.print(f"  {self.progress.count()}   {rate}")
            self.printed = time.monotonic()


def _needs(trial: Trial, origin: Trial) -> str:
    """Say in what way a trial needs another one."""
    first = trial.run.init_from
    return "starts from" if first is not None and Path(first.run) == origin.folder.absolute() else "reads"


def _measured(trial: Trial) -> str:
    """Say what a finished trial came to, if it has stored it: its loss, its speed and the time that it trained."""
    result = read_result(trial.folder)
    loss, seconds, tokens = (result.get("metrics", {}).get("val/loss"), result.get("seconds"), result.get("tokens"))
    parts = [f"{quantity('val/loss').name} {loss:.4f}"] if loss is not None else []
    parts += [f"{tokens / seconds:,.0f} tok/s in {seconds:,.0f} s"] if seconds and tokens else []
    return f": {', '.join(parts)}" if parts else ""


def _waits(waiting: Sequence[_Turn]) -> str:
    """Say what trials wait for."""
    held = [turn.trial.name for turn in waiting if turn.meeting is not None]
    more = f" and {len(held) - MOST_NAMES} more" if len(held) > MOST_NAMES else ""
    names = f", waiting for {', '.join(held[:MOST_NAMES])}{more}" if held else ""
    return names + (", waiting for space" if any(turn.needed for turn in waiting) else "")
