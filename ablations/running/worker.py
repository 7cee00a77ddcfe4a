"""Worker processes: run one trial at a time, under a lock that excludes other runners."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

LOG = "log.txt"  # in a trial's folder: its stderr


class Outcome(NamedTuple):
    """How a trial ended: finished, failed, diverged, or busy (another runner holds its lock)."""

    status: str
    error: str | None = None


def serve(pipe: Any, threads: int) -> None:
    """Serve as a local worker: answer calls (fn, args, kwargs) with (result, error) until the pipe is closed.

    Exits when its parent dies, and leaves Ctrl-C to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(threads)
    while True:
        try:
            fn, args, kwargs = pipe.recv()
        except EOFError:
            return
        answer: tuple[Any, str | None]
        try:
            answer = fn(*args, **kwargs), None
        except Exception as error:
            answer = None, f"{type(error).__name__}: {error}"
        pipe.send(answer)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def prepare(threads: int) -> None:
    """Import the heavy libraries and set up a training process."""
    import torch

    import dsv2.training.fit  # noqa: F401  imports lightning, which takes seconds
    from dsv2.training import machine

    torch.set_num_threads(threads)
    machine.prepare()


def run_job(threads: int, fn: Callable[..., Any], *args: Any) -> Any:
    """Call `fn` on another machine, in a process that may be new."""
    prepare(threads)
    return fn(*args)


def locked(folder: Path) -> bool:
    """Whether some process is running this trial now."""
    from dsv2.storage.rundir import LOCK

    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def run_trial(values: dict[str, Any], folder: Path, since: float) -> Outcome:
    """Train the run described by `values` in `folder`, unless it is finished or another process is running it.

    It is not retried either if it failed under another runner after `since`, the start of this one (as a file's mtime).
    """
    from dsv2.storage.rundir import LOCK, RESULT, read_result
    from dsv2.training.fit import Diverged, fit
    from dsv2.training.run import from_plain

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0, is_singleton=True):
            result = read_result(folder)
            if result.get("status") in ("failed", "diverged") and (folder / RESULT).stat().st_mtime > since:
                return Outcome(result["status"], result["error"])
            with (folder / LOG).open("a", buffering=1) as log, contextlib.redirect_stderr(log):
                fit(from_plain(values), folder)
    except Timeout:
        return Outcome("busy")
    except Diverged as error:
        return Outcome("diverged", str(error))
    except Exception as error:
        return Outcome("failed", f"{type(error).__name__}: {error}")  # the traceback is in its result.json
    return Outcome("finished")
