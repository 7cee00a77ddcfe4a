"""A study's runner as a separate process, which outlives the notebook that started it.

`runner.json` in the study's folder identifies the process, `runner.log` has its output. Later calls, from the same
kernel or after a restart, find it by these. Since PIDs are reused, a process is identified by PID and start time.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ablations.running import STOPPED
from ablations.trials.trials import Study
from dsv2.config import digest
from dsv2.printing import complain
from dsv2.storage.files import write_json
from dsv2.storage.locks import PID, Seconds, alive, duration, hold_when_free, is_stopped, start_time
from dsv2.storage.rundir import finished, runs_root
from dsv2.storage.sealed import Damaged, read_object

RECORD, LOG, LOCK = "runner.json", "runner.log", "runner.lock"
TAIL_LINES = 15  # of the log, shown in an exception
TERMINAL = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # set by kernels; the log is a file
STOP_SECONDS = 15.0  # grace period after SIGINT, before a runner is killed
MOST_BYTES = 1_000_000  # of a record, whose command may have many words


def in_notebook() -> bool:
    """Whether this process is a notebook kernel, rather than a script or shell."""
    if "ipykernel" not in sys.modules:
        return False
    from ipykernel.zmqshell import ZMQInteractiveShell
    from IPython.core.getipython import get_ipython

    return isinstance(get_ipython(), ZMQInteractiveShell)


class RunnerFailed(RuntimeError):
    """The runner exited before its study was complete."""


class AnotherRequest(RuntimeError):
    """The study is already running with other seeds, overrides or arms."""


@dataclass(frozen=True)
class Runner:
    """A process that runs, or ran, the study of `folder`."""

    folder: Path
    pid: PID  # also its process group and session
    started: Seconds | None  # None: it exited before this could be read
    request: str  # digest of the requested trials
    command: list[str]

    def alive(self) -> bool:
        return alive(self.pid, self.started)

    def waits(self) -> str:
        """Say how to continue the runner if it is stopped; empty if it is not."""
        if not (self.alive() and is_stopped(self.pid)):
            return ""
        return f"process {self.pid} is stopped; continue it with `kill -CONT -{self.pid}` or end it with .stop()"

    def stop(self) -> None:
        """Stop the runner as Ctrl-C does; trials keep their checkpoints, and the same command resumes them."""
        self._signal(signal.SIGINT)
        self._signal(signal.SIGCONT)  # a stopped process gets no other signal
        if not _wait(lambda: not self.alive(), STOP_SECONDS):
            self._signal(signal.SIGKILL)
            _wait(lambda: not self.alive(), STOP_SECONDS)

    def _signal(self, number: int) -> None:
        if self.alive():
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return  # it exited in between

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def since(self) -> float:
        """Start time of the runner, as the mtime of its record."""
        return (self.folder / RECORD).stat().st_mtime

    def check(self, study: Study) -> bool:
        """Check a runner that has exited; return True if every trial is finished. Raises RunnerFailed if it crashed."""
        report = study.folder / "report" / "report.html"  # written last
        if report.is_file() and report.stat().st_mtime >= self.since:
            return all(finished(trial.folder) is not None for trial in study.trials)
        printed = self.log.read_text(errors="replace")
        if printed.rstrip().endswith(STOPPED.strip()):
            return False
        tail = "\n".join(printed.splitlines()[-TAIL_LINES:]) or "(no output)"
        raise RunnerFailed(f"the runner of {study.name} exited early; the end of {self.log}:\n{tail}")


def find(folder: Path) -> Runner | None:
    """Return the live runner in a study's folder, or None; records of dead ones are ignored."""
    runner = last(folder)
    return runner if runner is not None and runner.alive() else None


def last(folder: Path) -> Runner | None:
    """Return the runner started last, alive or not, or None."""
    path = folder / RECORD
    try:
        values = read_object(path, MOST_BYTES) if path.is_file() else {}
        return TypeAdapter(Runner).validate_python(values | {"folder": folder})
    except (OSError, Damaged, ValidationError):
        return None


def attach(study: Study, *, workers: int | None = None, launcher: str = "local") -> Runner:
    """Return the live runner of `study`, or start one; concurrent callers get the same.

    Raises AnotherRequest if one is running with other trials in this folder, and Busy if a process stopped while it
    started a runner.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with hold_when_free(study.folder / LOCK, "the start of a runner", complain):
        runner = find(study.folder)
        if runner is None:
            return _start(study, workers, launcher)
        if runner.request != _request(study):
            age = duration(max(time.time() - (runner.started or 0.0), 0.0))
            state = runner.waits() or "wait for it, or stop it with .stop()"
            raise AnotherRequest(
                f"{study.name} is already running with other seeds, overrides or arms (process {runner.pid}, for "
                f"{age}: {' '.join(runner.command[1:])}); {state}"
            )
        return runner


def _start(study: Study, workers: int | None, launcher: str) -> Runner:
    study.remember()  # writes the file that the runner reads if the study was defined in the notebook
    command = [sys.executable, "-m", "ablations.run", *study.arguments, f"launcher={launcher}"]
    command += [] if workers is None else [f"workers={workers}"]
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {key: value for key, value in os.environ.items() if key not in TERMINAL}
    environment = inherited | {"PYTHONPATH": os.pathsep.join(path), "DSV2_RUNS": str(runs_root().resolve())}
    with (study.folder / LOG).open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    record: dict[str, Any] = {
        "pid": process.pid,
        "started": start_time(process.pid),
        "request": _request(study),
        "command": command,
    }
    write_json(study.folder / RECORD, record)
    return Runner(folder=study.folder, **record)


def _request(study: Study) -> str:
    return digest(sorted(trial.folder.name for trial in study.trials))


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
