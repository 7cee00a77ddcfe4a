"""Executors of trials: jobs are cancelled with their pool, and a pool of processes outlives its workers."""

import math
import os
import signal
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path

import pytest
import torch

from ablations.running import pool as pools
from ablations.running.pool import JobPool, LocalPool, WorkerDied, WorkerStopped


class FakeJob:
    def __init__(self, fn, *args):
        self.value, self.looks, self.cancelled = fn(*args), 0, False

    def done(self):
        self.looks += 1
        return self.looks > 2 and self.value != "endless"

    def result(self):
        return self.value

    def cancel(self):
        self.cancelled = True


def test_jobs_become_futures_and_are_cancelled_with_the_pool(monkeypatch):
    monkeypatch.setattr(pools, "JOB_SECONDS", 0.05)
    jobs = []

    def start(fn, *args):
        jobs.append(FakeJob(fn, *args))
        return jobs[-1]

    pool = JobPool(2, start)
    assert isinstance(future := pool.submit(max, 3, 4), Future)
    assert future.result(5) == 4
    endless = pool.submit(str, "endless")
    while len(jobs) < 2:
        time.sleep(0.01)
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        endless.result(5)
    assert [job.cancelled for job in jobs] == [False, True]


@pytest.mark.slow
def test_the_local_pool_outlives_its_workers():
    pool = LocalPool(1)
    first = pool.submit(os.getpid).result()
    assert pool.submit(os.getpid).result() == first != os.getpid()
    assert pool.submit(torch.get_num_threads).result() == 1
    with pytest.raises(RuntimeError, match="ValueError: math domain error"):
        pool.submit(math.sqrt, -1).result()
    with pytest.raises(WorkerDied):
        pool.submit(os.abort).result()
    with pytest.raises(WorkerStopped, match="stopped by SIGTERM"):
        pool.submit(signal.raise_signal, signal.SIGTERM).result()
    second = pool.submit(os.getpid).result()
    assert second != first
    pool.shutdown()
    assert not Path(f"/proc/{second}").exists()
