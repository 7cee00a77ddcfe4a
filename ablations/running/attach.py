"""A study's runner as a process of its own, which outlives the notebook that started it.

`runner.json` in the study's folder names the process, `runner.log` holds what it says. Whoever asks next, from the same
kernel or after its restart, finds it by these. Processes are told apart by PID and start time, as PIDs come again.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from ablations.running import STOPPED
from ablations.trials.trials import Study
from dsv2.config import digest
from dsv2.storage.files import write_json
from dsv2.storage.rundir import finished, runs_root

RECORD, LOG, LOCK = "runner.json", "runner.log", "runner.lock"
TAIL_LINES = 15  # of the log, in an exception
STOP_SECONDS = 15.0  # for a runner to end after SIGINT, before it is killed
SAME_SECONDS = 1.0  # two start times that are nearer are one: the system's clock may be adjusted in between


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, rather than a script or a shell."""
    if "ipykernel" not in sys.modules:
        return False
    from ipykernel.zmqshell import ZMQInteractiveShell
    from IPython.core.getipython import get_ipython

    return isinstance(get_ipython(), ZMQInteractiveShell)


class RunnerFailed(RuntimeError):
    """The runner ended before its study did."""


class AnotherRequest(RuntimeError):
    """The study's folder is being worked on with other seeds, overrides or arms."""


@dataclass(frozen=True)
class Runner:
    """A process that runs, or ran, the study of `folder`."""

    folder: Path
    pid: int  # also its process group and session
    started: float | None  # seconds since 1970; None: it ended before it could be asked
    request: str  # which trials it was asked for
    command: list[str]

    def alive(self) -> bool:
        now = start_time(self.pid)
        return now is not None and self.started is not None and abs(now - self.started) < SAME_SECONDS

    def stop(self) -> None:
        """End it as Ctrl-C does: what its trials saved stays, and the same command goes on from there."""
        self._signal(signal.SIGINT)
        if not _wait(lambda: not self.alive(), STOP_SECONDS):
            self._signal(signal.SIGKILL)
            _wait(lambda: not self.alive(), STOP_SECONDS)

    def _signal(self, number: int) -> None:
        if self.alive():
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                return  # it ended in between

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def since(self) -> float:
        """When it was started, by the clock that dates files."""
        return (self.folder / RECORD).stat().st_mtime

    def check(self, study: Study) -> bool:
        """Of a runner that has ended: True if every trial is finished. RunnerFailed if it did not end by itself."""
        report = study.folder / "report" / "report.html"  # the last thing it writes
        if report.is_file() and report.stat().st_mtime >= self.since:
            return all(finished(trial.folder) is not None for trial in study.trials)
        printed = self.log.read_text(errors="replace")
        if printed.rstrip().endswith(STOPPED.strip()):
            return False
        tail = "\n".join(printed.splitlines()[-TAIL_LINES:]) or "(it said nothing)"
        raise RunnerFailed(f"the runner of {study.name} ended early; the end of {self.log}:\n{tail}")


def find(folder: Path) -> Runner | None:
    """The runner that is at work in a study's folder now; what dead ones left behind is ignored."""
    runner = last(folder)
    return runner if runner is not None and runner.alive() else None


def last(folder: Path) -> Runner | None:
    """The runner that was started last, alive or not."""
    try:
        return Runner(folder=folder, **json.loads((folder / RECORD).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def attach(study: Study, *, workers: int | None = None, launcher: str = "local") -> Runner:
    """The runner of `study` that is at work already, else a new one; two callers at once get the same.

    AnotherRequest where one is at work on other trials of this folder.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(study.folder / LOCK):
        runner = find(study.folder)
        if runner is None:
            return _start(study, workers, launcher)
        if runner.request != _request(study):
            raise AnotherRequest(
                f"{study.name} is being run with other seeds, overrides or arms (process {runner.pid}: "
                f"{' '.join(runner.command[1:])}); wait for it, or end it with .stop()"
            )
        return runner


def _start(study: Study, workers: int | None, launcher: str) -> Runner:
    study.remember()  # a study made in the notebook has no other file that the runner could read
    command = [sys.executable, "-m", "ablations.run", *study.arguments, f"launcher={launcher}"]
    command += [] if workers is None else [f"workers={workers}"]
    path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "DSV2_RUNS": str(runs_root().resolve())}
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


def start_time(pid: int) -> float | None:
    """Return when a process started, in seconds since 1970; None where it does not live."""
    try:
        process = psutil.Process(pid)
        return None if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True
