"""Worker processes: run one trial at a time, under a lock that excludes other runners."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dsv2.storage.locks import Meeting

LOG = "log.txt"  # in a trial's folder: its stderr


class Outcome(NamedTuple):
    """How a trial ended: finished, failed, diverged, or not at all: busy, interrupted or full.

    These are: another process holds its lock, its worker got SIGTERM, and the disk has no space.
    """

    status: str
    error: str | None = None
    meeting: "Meeting | None" = None  # with the holder of the lock
    needed: int = 0  # bytes to wait for on a full disk


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


def run_trial(values: dict[str, Any], folder: Path, since: float) -> Outcome:
    """Train the run described by `values` in `folder`, unless it is finished or another process is running it.

    It is not retried either if it failed under another runner after `since`, the start of this one (as a file's mtime).
    """
    from dsv2.storage.locks import Busy, hold
    from dsv2.storage.rundir import LOCK, RESULT, read_result
    from dsv2.storage.space import DiskFull, naming_full_disk
    from dsv2.training.fit import Diverged, Interrupted, fit
    from dsv2.training.run import from_plain

    try:
        with naming_full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with hold(folder / LOCK, "this trial"):
                result = read_result(folder)
                if result.get("status") in ("failed", "diverged") and (folder / RESULT).stat().st_mtime > since:
                    return Outcome(result["status"], result["error"])
                with (folder / LOG).open("a", buffering=1) as log, contextlib.redirect_stderr(log):
                    fit(from_plain(values), folder)
    except Busy as busy:
        return Outcome("busy", str(busy), meeting=busy.meeting)
    except Interrupted as error:
        return Outcome("interrupted", str(error))
    except DiskFull as error:
        return Outcome("full", str(error), needed=error.needed)
    except Diverged as error:
        return Outcome("diverged", str(error))
    except Exception as error:
        return Outcome("failed", f"{type(error).__name__}: {error}")  # the traceback is in its result.json
    return Outcome("finished")
