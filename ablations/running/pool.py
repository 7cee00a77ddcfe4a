"""Executors of trials: long-lived processes of this machine, and jobs elsewhere."""

import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from multiprocessing import connection, get_context, resource_tracker
from typing import Any, Protocol

from ablations.running.worker import serve

JOB_SECONDS = 1.0  # between two looks at a job
EXIT_SECONDS = 5.0  # for an idle worker to end by itself


class WorkerDied(RuntimeError):
    """The process that ran a trial was killed, by the system for want of memory or by somebody."""


class LocalPool(Executor):
    """Long-lived processes: one that dies takes only its own trial with it, and another takes its place.

    Not `ProcessPoolExecutor`, which fails every pending trial when one worker is killed, and whose semaphores make
    Python complain after the runner was.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        resource_tracker.ensure_running()  # starting it unblocks signals; see `_Worker`
        self._threads = ThreadPoolExecutor(workers)
        self._num_threads = threads
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: may be started
        self._all: list[_Worker] = []
        self._lock, self._closed = threading.Lock(), False
        for _ in range(workers):
            self._idle.put(None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        worker = self._idle.get()
        try:
            worker = worker or self._start()
            return worker.run(fn, args, kwargs)
        except WorkerDied:
            worker = None
            raise
        finally:
            self._idle.put(worker)

    def _start(self) -> "_Worker":
        with self._lock:
            if self._closed:
                raise CancelledError
            self._all = [worker for worker in self._all if worker.process.is_alive()]
            self._all.append(_Worker(self._num_threads))
            return self._all[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With `cancel_futures`, running trials are ended too; their checkpoints stay."""
        self._threads.shutdown(wait=wait and not cancel_futures, cancel_futures=cancel_futures)
        if not wait and not cancel_futures:
            return  # idle workers end with this process
        with self._lock:
            self._closed = True
        for worker in self._all:
            if cancel_futures:
                worker.process.kill()
        for worker in self._all:
            worker.end()


class _Worker:
    """A process and the pipe to it. Its SIGINT is blocked from birth: Ctrl-C is the runner's to handle."""

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, threads), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            self.pipe.send((fn, args, kwargs))
            connection.wait([self.pipe, self.process.sentinel])
            if not self.pipe.poll():
                raise EOFError
            result, error = self.pipe.recv()
        except (EOFError, OSError):
            raise WorkerDied("the worker process was killed") from None
        if error is not None:
            raise RuntimeError(error)
        return result

    def end(self) -> None:
        if self.process.is_alive():
            self.pipe.close()
        self.process.join(EXIT_SECONDS)
        if self.process.is_alive():
            self.process.kill()


class Job(Protocol):
    """What submitit's jobs can do, and `_RayJob`."""

    def done(self) -> bool: ...
    def result(self) -> Any: ...
    def cancel(self) -> Any: ...


class JobPool(Executor):
    """Trials as jobs elsewhere, `workers` at a time; a thread each waits for its own."""

    def __init__(self, workers: int, start: Callable[..., Job]) -> None:
        self._threads, self._start, self._closed = ThreadPoolExecutor(workers), start, threading.Event()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        job = self._start(fn, *args, **kwargs)
        while not job.done():
            if self._closed.wait(JOB_SECONDS):
                job.cancel()
                raise CancelledError
        return job.result()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """With `cancel_futures`, running jobs are cancelled too."""
        if cancel_futures:
            self._closed.set()
        self._threads.shutdown(wait=wait or cancel_futures, cancel_futures=cancel_futures)
