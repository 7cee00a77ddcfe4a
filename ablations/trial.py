"""What a worker process does: one trial at a time, under a lock that no second runner can hold."""

import os
import threading
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout


class Outcome(NamedTuple):
    """How a trial ended: finished, failed, diverged, or busy (another runner has it)."""

    status: str
    error: str | None = None


def start_worker(threads: int) -> None:
    """Prepare a fresh process: end with its parent, leave Ctrl-C to it, import the heavy libraries once."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    import dsv2.training.fit  # noqa: F401  imports lightning, which takes seconds
    from dsv2.training import process

    torch.set_num_threads(threads)
    process.prepare()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def run_trial(values: dict[str, Any], folder: Path) -> Outcome:
    """Train the run that `values` describe in `folder`, unless it is finished or another process is at it."""
    from dsv2.run import from_plain
    from dsv2.training.fit import Diverged, fit

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            fit(from_plain(values), folder)
    except Timeout:
        return Outcome("busy")
    except Diverged as error:
        return Outcome("diverged", str(error))
    except Exception as error:
        return Outcome("failed", f"{type(error).__name__}: {error}")  # the traceback is in its result.json
    return Outcome("finished")
