"""Where trials run: behind one interface, that of `concurrent.futures.Executor`.

`launcher=local` keeps processes of its own. `launcher=slurm` submits every trial as a job through submitit; logs lie in
`<study folder>/slurm`. The environment changes what a job asks for, in submitit's words:

    DSV2_SLURM="timeout_min=600 cpus_per_task=4 gpus_per_node=1 slurm_partition=gpu"
    DSV2_SLURM_CLUSTER=local        processes of this machine in place of jobs, to try it

`launcher=ray` joins the cluster that RAY_ADDRESS names, or starts one on this machine. Both need a folder of runs that
all machines share. Their jobs are cancelled with the study on Ctrl-C; of a runner that was killed they go on, and the
same command waits for them.
"""

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from multiprocessing import connection, get_context, resource_tracker
from pathlib import Path
from typing import Any, Protocol

from ablations.running.worker import run_job, serve
from dsv2.config import ConfigError
from dsv2.storage.rundir import runs_root

SLURM = {"timeout_min": 24 * 60, "cpus_per_task": 1, "tasks_per_node": 1, "nodes": 1, "name": "dsv2"}
MOST_JOBS = 64  # at a time on a cluster, unless `workers` says otherwise
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


def executor(launcher: str, *, workers: int | None, folder: Path) -> Executor:
    """The executor that `launcher` names: local, slurm or ray."""
    if launcher == "local":
        return LocalPool(workers or _default_workers())
    if launcher == "slurm":
        return _slurm(workers or MOST_JOBS, folder / "slurm")
    if launcher == "ray":
        return _ray(workers)
    raise ConfigError("launcher", launcher, "local, slurm or ray")


def _slurm(workers: int, folder: Path) -> JobPool:
    try:
        import submitit
    except ModuleNotFoundError:
        raise _missing("slurm", "submitit") from None
    words = os.environ.get("DSV2_SLURM", "")
    asked: dict[str, Any] = dict(SLURM)
    try:
        for word in words.split():
            key, value = word.split("=", 1)
            asked[key] = int(value) if value.isdigit() else value
        jobs = submitit.AutoExecutor(folder=folder, cluster=os.environ.get("DSV2_SLURM_CLUSTER", "slurm"))
        jobs.update_parameters(**asked)
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError("DSV2_SLURM", words, f"parameters of submitit, as in timeout_min=600 ({error})") from None
    except RuntimeError as error:  # no sbatch here
        raise ConfigError("launcher", "slurm", str(error)) from None
    lock = threading.Lock()  # submitit counts its pending jobs without one

    def start(fn: Callable[..., Any], *args: Any) -> Job:
        with lock:
            job: Job = jobs.submit(run_job, asked["cpus_per_task"], fn, *args)
        return job

    return JobPool(workers, start)


class _RayJob:
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def done(self) -> bool:
        return bool(self.ray.wait([self.reference], timeout=0)[0])

    def result(self) -> Any:
        return self.ray.get(self.reference)

    def cancel(self) -> None:
        self.ray.cancel(self.reference, force=True)


def _ray(workers: int | None) -> JobPool:
    try:
        import ray
    except ModuleNotFoundError:
        raise _missing("ray", "ray") from None
    if not ray.is_initialized():
        found = {"PYTHONPATH": str(Path(__file__).parents[1]), "DSV2_RUNS": str(runs_root().resolve())}
        ray.init(
            num_cpus=None if "RAY_ADDRESS" in os.environ else workers,
            include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": found},
        )
    remote = ray.remote(num_cpus=1, max_retries=0)(run_job)
    return JobPool(workers or MOST_JOBS, lambda fn, *args: _RayJob(ray, remote.remote(1, fn, *args)))


def _missing(launcher: str, package: str) -> ConfigError:
    return ConfigError("launcher", launcher, f"needs {package}: pip install 'dsv2[launchers]'")


def _default_workers() -> int:
    """One single-threaded worker a core; one in all where there is a GPU to share."""
    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
