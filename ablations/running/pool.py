"""Executors of trials: long-lived local processes, and jobs on other machines."""

import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from multiprocessing import connection, get_context, resource_tracker
from typing import Any, Protocol

from ablations.running.worker import serve

JOB_SECONDS = 1.0  # polling interval of a job
EXIT_SECONDS = 5.0  # grace period for an idle worker to exit


class WorkerDied(RuntimeError):
    """The process that ran a trial was killed, for example by the system when memory ran out."""


class WorkerStopped(WorkerDied):
    """The process that ran a trial got SIGTERM, which asks it to stop."""


class LocalPool(Executor):
    """A pool of long-lived processes; one that dies fails only its own trial and is replaced.

    They start at once, so that their imports overlap with what the caller prepares.
    `ProcessPoolExecutor` would fail every pending trial when one worker is killed, and if the runner is killed, Python
    warns of its leaked semaphores.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        resource_tracker.ensure_running()  # starting it later would unblock signals; see `_Worker`
        self._threads = ThreadPoolExecutor(workers)
        self._num_threads = threads
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: died
        self._all: list[_Worker] = []
        self._lock, self._closed = threading.Lock(), False
        for _ in range(workers):
            self._idle.put(self._start())

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
        """Shut down; with `cancel_futures`, running trials are killed too, and their checkpoints kept."""
        self._threads.shutdown(wait=wait and not cancel_futures, cancel_futures=cancel_futures)
        if not wait and not cancel_futures:
            return  # idle workers exit with this process
        with self._lock:
            self._closed = True
        for worker in self._all:
            if cancel_futures:
                worker.process.kill()
        for worker in self._all:
            worker.end()


class _Worker:
    """A process and the pipe to it. It starts with SIGINT blocked, since the runner handles Ctrl-C."""

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
            self.process.join(EXIT_SECONDS)
            if self.process.exitcode == -signal.SIGTERM:
                raise WorkerStopped("the worker process was stopped by SIGTERM") from None
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
    """The interface of submitit's jobs and of `_RayJob`."""

    def done(self) -> bool: ...
    def result(self) -> Any: ...
    def cancel(self) -> Any: ...


class JobPool(Executor):
    """Runs trials as jobs on other machines, `workers` at a time, with a waiting thread for each."""

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
        """Shut down; with `cancel_futures`, running jobs are cancelled too."""
        if cancel_futures:
            self._closed.set()
        self._threads.shutdown(wait=wait or cancel_futures, cancel_futures=cancel_futures)
