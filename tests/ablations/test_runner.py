"""The study runner: what it does with trials that fail, vanish or belong to another runner, and what kills leave."""

import io
import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from ablations import study
from ablations.run import main
from ablations.running import launch, runner
from ablations.running.launch import JobPool, WorkerDied
from ablations.running.runner import _run_all, _Watch
from ablations.running.worker import LOCK, Outcome, locked, run_trial
from ablations.trials.progress import tokens_logged
from ablations.trials.results import results_of
from dsv2.config import ConfigError, plain
from dsv2.training import fit

SHORT = ["model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.log_every=4"]


@pytest.fixture
def small(quick):
    """A study of six trials of 12 steps."""
    return study("balance_losses", seeds=[0], overrides=[*quick, *SHORT])


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runner, "BUSY_SECONDS", 0.2)


def run_with(fake, todo, console, monkeypatch, workers=2):
    """The runner's loop over `fake(folder)` in place of training."""
    monkeypatch.setattr(runner, "run_trial", lambda values, folder, since: fake(folder))
    with ThreadPoolExecutor(workers) as pool:
        _run_all(todo, pool, console, 0.0)
    return console.file.getvalue()


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_a_failing_trial_does_not_stop_the_others(small, console, monkeypatch, impatient):
    bad, ran = small.trials[1].folder.resolve(), Counter()

    def fake(folder):
        ran[folder] += 1
        return Outcome("failed", "ValueError: [no] luck") if folder == bad else Outcome("finished")

    said = run_with(fake, small.trials, console, monkeypatch)
    assert ran == Counter(one.folder.resolve() for one in small.trials)
    assert "expert-s0 failed: ValueError: [no] luck" in said
    assert said.count(" finished ") == 5


def test_a_trial_of_another_runner_is_looked_at_now_and_then(small, console, monkeypatch, impatient):
    calls, started = [], time.monotonic()

    def fake(folder):
        calls.append(time.monotonic())
        return Outcome("busy" if calls[-1] - started < 1 else "finished")

    said = run_with(fake, small.trials[:1], console, monkeypatch)
    assert 4 <= len(calls) <= 7  # every 0.2 s for a second
    assert said.count("finished") == 1


def test_a_locked_trial_is_not_even_submitted(small, console, monkeypatch, impatient):
    one, ran = small.trials[0], []
    one.folder.mkdir(parents=True)
    lock = FileLock(one.folder / LOCK, thread_local=False)
    lock.acquire()
    threading.Timer(0.5, lock.release).start()
    started = time.monotonic()

    def fake(folder):
        ran.append(time.monotonic() - started)
        return Outcome("finished")

    run_with(fake, [one], console, monkeypatch)
    assert len(ran) == 1
    assert ran[0] > 0.4


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_lost_worker_is_replaced_once(small, console, monkeypatch, impatient, deaths):
    one, calls = small.trials[0], []

    def fake(folder):
        calls.append(folder)
        if len(calls) <= deaths:
            raise WorkerDied("the worker process was killed")
        return Outcome("finished")

    said = run_with(fake, [one], console, monkeypatch)
    assert len(calls) == 2
    if deaths == 1:
        assert "none-s0 finished" in said
        assert not (one.folder / "result.json").exists()
    else:
        stored = json.loads((one.folder / "result.json").read_text())
        assert (stored["status"], stored["arm"], stored["seed"]) == ("failed", "none", 0)
        assert "WorkerDied: the worker process was killed" in stored["traceback"]


def test_ctrl_c_ends_the_pool_and_goes_on_to_the_caller(small, console, monkeypatch):
    ended = []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            ended.append((wait, cancel_futures))
            super().shutdown(wait=wait, cancel_futures=cancel_futures)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "executor", lambda *_, **__: Pool(1))
    monkeypatch.setattr(runner, "_run_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.run_study(small, workers=1, launcher="local", console=console)
    assert ended == [(False, True)]


# ---- one trial -------------------------------------------------------------------------------------------------------


def test_a_trial_runs_under_its_lock(small):
    one = small.trials[0]
    one.folder.mkdir(parents=True)
    assert not locked(one.folder)
    with FileLock(one.folder / LOCK):
        assert locked(one.folder)
        assert run_trial(plain(one.run), one.folder, 0.0) == Outcome("busy")
    assert not locked(one.folder)
    assert sorted(path.name for path in one.folder.iterdir()) in ([LOCK], [])


def test_a_failure_is_recorded_and_tried_again_by_the_next_command_only(small, monkeypatch):
    one, tries = small.trials[0], []

    def broken(run, folder):
        tries.append(folder)
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(fit, "_train", broken)
    before = time.time() - 60
    failed = Outcome("failed", "ZeroDivisionError: nothing to divide by")
    assert run_trial(plain(one.run), one.folder, before) == failed
    stored = json.loads((one.folder / "result.json").read_text())
    assert "in broken" in stored["traceback"]
    assert run_trial(plain(one.run), one.folder, before) == failed  # the other runner, which started as early
    assert len(tries) == 1
    assert run_trial(plain(one.run), one.folder, time.time() + 60) == failed  # a later command
    assert len(tries) == 2


def test_a_trial_that_diverges_says_so(quick):
    wild = [*quick, *SHORT, "optim.lr=1e30"]
    one = study("balance_losses", seeds=[0], overrides=wild).trials[0]
    outcome = run_trial(plain(one.run), one.folder, 0.0)
    assert outcome.status == "diverged"
    assert outcome.error.endswith("in step 2")
    assert json.loads((one.folder / "result.json").read_text())["status"] == "diverged"


# ---- progress --------------------------------------------------------------------------------------------------------


def write_tokens(folder: Path, tokens: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": tokens}) + "\n")


def test_the_rate_counts_from_the_first_step_and_leaves_out_what_failed(small, console, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first, second, *_ = two = small.trials[:2]
    write_tokens(first.folder, 400)  # of an attempt that was killed; its checkpoint is older
    watch = _Watch(two, console)
    clock[0] += 100  # workers start
    write_tokens(first.folder, 100)
    watch.look()
    assert watch.progress.rate() == "3% of 0.0M tokens"
    write_tokens(first.folder, 200)
    clock[0] += 1
    watch.look()
    write_tokens(first.folder, 1200)
    clock[0] += 10
    watch.look()
    assert watch.progress.rate() == "39% of 0.0M tokens, 100 tok/s, 0:19 left"
    watch.ended(second, Outcome("failed", "why"))
    watch.look()
    assert watch.progress.rate() == "78% of 0.0M tokens, 100 tok/s, 0:03 left"


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        (b"", 0),
        (b'{"step": 1, "tokens": 7}\n', 7),
        (b'{"step": 1, "tokens": 7}\n{"step": 2, "tok', 7),
        (b'{"step": 1, "tokens": 7}\n\0\0\0\n', 0),
        (b'{"st', 0),
    ],
)
def test_tokens_of_damaged_metrics(tmp_path, content, tokens):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert tokens_logged(tmp_path) == tokens


# ---- launchers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, launcher, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"launcher='{launcher}' is not valid: .*pip install 'dsv2\[launchers\]'"):
        launch.executor(launcher, workers=1, folder=tmp_path)


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
    monkeypatch.setattr(launch, "JOB_SECONDS", 0.05)
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


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_is_one_line(quick, monkeypatch, capsys):
    monkeypatch.setenv("DSV2_RUNS", "/dev/null/runs")
    assert main(["sweep=balance_losses", "seeds=[0]", *quick, *SHORT]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: [Errno 20]")
    assert error.count("\n") == 1


# ---- tables ----


def test_tables_leave_out_what_is_damaged(small, capsys):
    one = small.trials[0]
    one.folder.mkdir(parents=True)
    whole = {"step": 1, "tokens": 7, "val/loss": 2.0}
    (one.folder / "metrics.jsonl").write_text(json.dumps(whole) + '\n{"step": 2, "tok')
    (one.folder / "routing.parquet").write_bytes(b"PAR1 and no more")
    found = results_of(small)
    assert found.metrics()[["step", "tokens", "value"]].to_numpy().tolist() == [[1, 7, 2.0]]
    assert found.routing().empty
    said = capsys.readouterr().err
    assert "metrics.jsonl: line 2 is damaged" in said
    assert "routing.parquet is damaged" in said
