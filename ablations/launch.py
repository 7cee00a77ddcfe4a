"""Where trials run: behind one interface, that of `concurrent.futures.Executor`."""

import os
import queue
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ablations.trial import start_worker
from dsv2.config import ConfigError


class LocalPool(Executor):
    """Long-lived processes, each with its own queue: one that dies takes only its own trial with it.

    `ProcessPoolExecutor` would fail every pending trial when one worker is killed; here its place is filled again.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        self._thread_count = threads
        self._threads = ThreadPoolExecutor(workers)
        self._slots: queue.SimpleQueue[ProcessPoolExecutor] = queue.SimpleQueue()
        self._all: list[ProcessPoolExecutor] = []
        for _ in range(workers):
            self._slots.put(self._start())

    def _start(self) -> ProcessPoolExecutor:
        slot = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=start_worker, initargs=(self._thread_count,)
        )
        self._all.append(slot)
        return slot

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        slot = self._slots.get()
        try:
            return slot.submit(fn, *args, **kwargs).result()
        except BrokenProcessPool:
            slot = self._start()
            raise RuntimeError("the worker process was killed") from None
        finally:
            self._slots.put(slot)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With `cancel_futures`, running trials are ended too; their checkpoints stay."""
        self._threads.shutdown(wait=not cancel_futures, cancel_futures=cancel_futures)
        for slot in self._all:
            if cancel_futures:
                for process in list((slot._processes or {}).values()):
                    process.kill()
            slot.shutdown(wait=not cancel_futures, cancel_futures=cancel_futures)


def executor(launcher: str, *, workers: int | None, folder: Path) -> Executor:
    """The executor that `launcher` names: local, slurm or ray."""
    if launcher == "local":
        return LocalPool(workers or _default_workers())
    raise ConfigError("launcher", launcher, "local")


def _default_workers() -> int:
    """One single-threaded worker a core; one in all where there is a GPU to share."""
    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
