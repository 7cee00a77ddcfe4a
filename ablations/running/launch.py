"""Launchers of trials, all behind the interface of `concurrent.futures.Executor`.

`launcher=local` uses a pool of local processes. `launcher=slurm` submits every trial as a job through submitit, with
logs in `<study folder>/slurm`. Environment variables set the job's submitit parameters:

    DSV2_SLURM="timeout_min=600 cpus_per_task=4 gpus_per_node=1 slurm_partition=gpu"
    DSV2_SLURM_CLUSTER=local        run local processes in place of jobs, to try it out

`launcher=ray` joins the cluster at RAY_ADDRESS, or starts one on this machine. Both need a runs folder shared by all
machines. On Ctrl-C their jobs are cancelled with the study; if the runner is killed they go on, and the same command
waits for them.
"""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from ablations.running.pool import Job, JobPool, LocalPool
from ablations.running.worker import run_job
from dsv2.config import ConfigError
from dsv2.storage.rundir import runs_root

SLURM = {"timeout_min": 24 * 60, "cpus_per_task": 1, "tasks_per_node": 1, "nodes": 1, "name": "dsv2"}
MOST_JOBS = 64  # at a time on a cluster, unless `workers` is given


def executor(launcher: str, *, workers: int | None, folder: Path, trials: int) -> Executor:
    """Return the executor for `launcher`, local, slurm or ray, that is to run this many trials."""
    if launcher == "local":
        return LocalPool(min(trials, workers or default_workers()))
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
    variable = os.environ.get("DSV2_SLURM", "")
    parameters: dict[str, Any] = dict(SLURM)
    try:
        for word in variable.split():
            key, value = word.split("=", 1)
            parameters[key] = int(value) if value.isdigit() else value
        jobs = submitit.AutoExecutor(folder=folder, cluster=os.environ.get("DSV2_SLURM_CLUSTER", "slurm"))
        jobs.update_parameters(**parameters)
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError("DSV2_SLURM", variable, f"parameters of submitit, as in timeout_min=600 ({error})") from None
    except RuntimeError as error:  # sbatch is missing
        raise ConfigError("launcher", "slurm", str(error)) from None
    lock = threading.Lock()  # submitit's count of pending jobs is not thread-safe

    def start(fn: Callable[..., Any], *args: Any) -> Job:
        with lock:
            job: Job = jobs.submit(run_job, parameters["cpus_per_task"], fn, *args)
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
        environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "DSV2_RUNS": str(runs_root().resolve())}
        ray.init(
            num_cpus=None if "RAY_ADDRESS" in os.environ else workers,
            include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": environment},
        )
    remote = ray.remote(num_cpus=1, max_retries=0)(run_job)
    return JobPool(workers or MOST_JOBS, lambda fn, *args: _RayJob(ray, remote.remote(1, fn, *args)))


def _missing(launcher: str, package: str) -> ConfigError:
    return ConfigError("launcher", launcher, f"needs {package}: pip install 'dsv2[launchers]'")


def default_workers() -> int:
    """Return one single-threaded worker per core, or a single worker if there is a GPU to share."""
    import torch

    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
