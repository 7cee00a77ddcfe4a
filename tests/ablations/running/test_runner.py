"""The study runner: what it does with trials that fail, vanish or belong to another runner."""

import errno
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock

from ablations.running import runner
from ablations.running.pool import WorkerDied, WorkerStopped
from ablations.running.runner import _run_all, _Turn, _Watch, failures
from ablations.running.worker import Outcome
from dsv2.storage import locks
from dsv2.storage.locks import Meeting
from dsv2.storage.rundir import LOCK, finished, write_result
from dsv2.storage.space import DiskFull


@pytest.fixture
def run_with(console, monkeypatch):
    """Runs the runner's loop over `fake(folder)` in place of training; returns what it printed."""

    def run_with(fake, todo, workers=2):
        monkeypatch.setattr(runner, "run_trial", lambda values, folder, since: fake(folder))
        with ThreadPoolExecutor(workers) as pool:
            _run_all(todo, pool, console, 0.0, lambda: False)
        return console.file.getvalue()

    return run_with


# ---- the loop --------------------------------------------------------------------------------------------------------


def test_a_failing_trial_does_not_stop_the_others(six, run_with, impatient):
    bad, ran = six.trials[1].folder.resolve(), Counter()

    def fake(folder):
        ran[folder] += 1
        return Outcome("failed", "ValueError: [no] luck") if folder == bad else Outcome("finished")

    said = run_with(fake, six.trials)
    assert ran == Counter(trial.folder.resolve() for trial in six.trials)
    assert "expert-s0 failed: ValueError: [no] luck" in said
    assert said.count(" finished ") == 5


def test_a_finished_trial_says_what_it_came_to(six, run_with):
    def fake(folder):
        folder.mkdir(parents=True)
        result = {"status": "finished", "metrics": {"val/loss": 5.12345}, "tokens": 51_200, "seconds": 20.0}
        write_result(folder, result)
        return Outcome("finished")

    said = run_with(fake, six.trials[:1])
    assert "none-s0 finished: validation loss 5.1234, 2,560 tok/s in 20 s   100% of" in said


def test_what_failed_is_summed_up_at_the_end(six):
    assert failures(six, six.trials) == []  # none has ended
    for trial in six.trials:
        trial.folder.mkdir(parents=True)
        write_result(trial.folder, {"status": "failed", "error": f"ValueError: no luck, {trial.name}\nmore"})
    first, *named, more, look, again = failures(six, six.trials)
    assert first == "6 of 6 trials failed:"
    assert named[0] == "  none-s0: ValueError: no luck, none-s0"
    assert (len(named), more) == (5, "  and 1 more")
    folder = six.trials[0].folder
    assert look == f"look at one: python -m dsv2 show {folder}; its log: {folder / 'log.txt'}"
    assert again == "the same command tries them again"


def test_a_trial_of_another_runner_is_looked_at_now_and_then(six, run_with, impatient):
    calls, started = [], time.monotonic()

    def fake(folder):
        calls.append(time.monotonic())
        return Outcome("busy" if calls[-1] - started < 1 else "finished")

    said = run_with(fake, six.trials[:1])
    assert 4 <= len(calls) <= 7  # every 0.2 s for a second
    assert said.count("finished") == 1


def test_a_locked_trial_is_not_even_submitted(six, run_with, impatient):
    trial, ran = six.trials[0], []
    trial.folder.mkdir(parents=True)
    lock = FileLock(trial.folder / LOCK, thread_local=False)
    lock.acquire()
    threading.Timer(0.5, lock.release).start()
    started = time.monotonic()

    def fake(folder):
        ran.append(time.monotonic() - started)
        return Outcome("finished")

    run_with(fake, [trial])
    assert len(ran) == 1
    assert ran[0] > 0.4


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_lost_worker_is_replaced_once(six, run_with, impatient, deaths):
    trial, calls = six.trials[0], []

    def fake(folder):
        calls.append(folder)
        if len(calls) <= deaths:
            raise WorkerDied("the worker process was killed")
        return Outcome("finished")

    said = run_with(fake, [trial])
    assert len(calls) == 2
    if deaths == 1:
        assert "none-s0 finished" in said
        assert not (trial.folder / "result.json").exists()
    else:
        stored = json.loads((trial.folder / "result.json").read_text())
        assert (stored["status"], stored["arm"], stored["seed"]) == ("failed", "none", 0)
        assert "WorkerDied: the worker process was killed" in stored["traceback"]


def test_a_trial_whose_worker_is_asked_to_stop_is_resumed(six, run_with, impatient):
    """Whether within a step, where the trial notices, or elsewhere, where the process ends; and however often."""
    trial, calls = six.trials[0], []

    def fake(folder):
        calls.append(folder)
        if len(calls) % 2 and len(calls) < 6:
            raise WorkerStopped("the worker process was stopped by SIGTERM")
        return Outcome("interrupted", "stopped by SIGTERM") if len(calls) < 6 else Outcome("finished")

    said = run_with(fake, [trial])
    assert len(calls) == 6
    assert said.count("none-s0: the worker process was stopped by SIGTERM; resuming from its checkpoint") == 3
    assert said.count("none-s0: stopped by SIGTERM; resuming from its checkpoint") == 2
    assert "none-s0 finished" in said
    assert not (trial.folder / "result.json").exists()


# ---- trials that others hold -----------------------------------------------------------------------------------------


HELD = Meeting("process 12 has held this trial since 12:00:00 and gave a sign of life 1 s ago", "wait for it", False)
STOPPED = Meeting("process 12 has held this trial since 12:00:00 but is stopped", "`kill -CONT 12`", True)


@pytest.fixture
def holders(monkeypatch):
    """Trials by folder that another process holds, with what is known of it."""
    holders = {}
    monkeypatch.setattr(runner, "is_held", lambda lock: lock.parent in holders)
    monkeypatch.setattr(runner, "meet", lambda lock, what: holders[lock.parent])
    return holders


def test_who_holds_a_trial_is_said_once_and_the_others_go_on(six, run_with, impatient, holders):
    first, second = (trial.folder for trial in six.trials[:2])
    holders |= {first: HELD, second: HELD}
    ended = []

    def fake(folder):
        ended.append(folder)
        if len(ended) == 4:
            holders.clear()
        return Outcome("finished")

    said = run_with(fake, six.trials)
    assert said.count(str(HELD)) == 1
    assert f"  none-s0: left for later: {HELD}\n" in said
    assert said.count(" finished ") == 6
    assert {*ended[4:]} == {first.resolve(), second.resolve()}


def test_a_lock_that_is_lost_to_another_worker_is_as_good(six, run_with, impatient):
    """Between the look at the lock and the start of the job."""
    calls = []

    def fake(folder):
        calls.append(folder)
        return Outcome("busy", "busy", meeting=HELD) if len(calls) < 3 else Outcome("finished")

    said = run_with(fake, six.trials[:1])
    assert said.splitlines()[0] == f"  none-s0: left for later: {HELD}"
    assert said.count(str(HELD)) == said.count(" finished ") == 1


def test_a_holder_that_stops_is_said_again_and_not_waited_for(six, run_with, impatient, holders, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.5)
    held = six.trials[1].folder
    holders[held] = HELD
    threading.Timer(0.7, lambda: holders.update({held: STOPPED})).start()
    said = run_with(lambda folder: Outcome("finished"), six.trials)
    assert said.count(" finished ") == 5
    assert said.count(f"  expert-s0: left for later: {HELD}") == 1
    assert said.count(f"  expert-s0: left for later: {STOPPED}") == 1
    assert said.splitlines()[-2:] == [
        f"  expert-s0: not run: {STOPPED}",
        "  no other trial is left; run the same command again for these",
    ]
    assert not (held / "result.json").exists()


def test_a_stopped_holder_is_waited_for_while_another_lives(six, run_with, impatient, holders, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.3)
    holders |= {six.trials[0].folder: STOPPED, six.trials[1].folder: HELD}
    threading.Timer(1.5, holders.clear).start()
    said = run_with(lambda folder: Outcome("finished"), six.trials[:2])
    assert said.count(" finished ") == 2


# ---- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_waited_for(six, run_with, impatient, monkeypatch):
    looks, calls = [], Counter()

    def looked(folder, num_bytes):
        looks.append((folder, num_bytes))
        return len(looks) > 3

    def fake(folder):
        calls[folder] += 1
        full = folder == six.trials[0].folder.resolve() and calls[folder] < 2
        return Outcome("full", "run/metrics.jsonl: no space", needed=77) if full else Outcome("finished")

    monkeypatch.setattr(runner, "has_space", looked)
    said = run_with(fake, six.trials)
    assert looks == [(six.trials[0].folder, 77)] * 4
    assert said.count("  none-s0: run/metrics.jsonl: no space; waiting for space\n") == 1
    assert said.count("  none-s0: there is space again; resuming from its checkpoint\n") == 1
    assert said.count(" finished ") == 6


def test_what_the_runner_writes_itself_waits_for_space_too(tmp_path, console, monkeypatch):
    monkeypatch.setattr(runner, "SPACE_SECONDS", 0.01)
    looks, tries = [], []

    def action():
        tries.append(1)
        if len(tries) == 1:
            raise DiskFull(tmp_path / "missing" / "study.json", errno.ENOSPC, 77)
        return "done"

    monkeypatch.setattr(runner, "has_space", lambda *arguments: looks.append(arguments) or len(looks) > 2)
    assert runner.with_space(action, console) == "done"
    assert looks == [(tmp_path, 77)] * 3
    said = console.file.getvalue().splitlines()
    assert said[0].startswith(f"{tmp_path}/missing/study.json: no space left on the disk (")
    assert said[0].endswith("free); waiting for space")
    assert said[1:] == ["there is space again; going on"]


# ---- what fails outside ----------------------------------------------------------------------------------------------


def test_a_launcher_that_fails_fails_its_trial_alone(small, run_with, impatient):
    """What an executor raises, as a cluster that is down, is recorded in place of the trial's own result."""
    bad = small.trials[0].folder.resolve()

    def fake(folder):
        if folder == bad:
            raise OSError("the cluster is down")
        return Outcome("finished")

    said = run_with(fake, small.trials)
    assert "none-s0 failed: OSError: the cluster is down" in said
    assert "expert-s0 finished" in said
    assert json.loads((bad / "result.json").read_text())["error"] == "OSError: the cluster is down"


def test_ctrl_c_ends_the_pool_and_goes_on_to_the_caller(six, console, monkeypatch):
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
        runner.run_trials(six, workers=1, launcher="local", console=console)
    assert ended == [(False, True)]


# ---- a study ---------------------------------------------------------------------------------------------------------


def test_finished_trials_are_skipped_and_nothing_is_reported(small, here, console):
    """Running is not reporting: that is for whoever asked."""
    assert runner.run_trials(small, workers=1, launcher="local", console=console) is True
    assert all(finished(trial.folder) for trial in small.trials)
    assert here == [trial.folder.resolve() for trial in small.trials]
    assert runner.run_trials(small, workers=1, launcher="local", console=console) is True
    assert len(here) == 2
    said = console.file.getvalue()
    assert "2 trials, 0 already finished" in said
    assert "2 trials, 2 already finished" in said
    assert not (small.folder / "report").exists()


def test_a_study_with_a_failed_trial_is_not_finished(pair, here, console):
    wild = pair("optim.lr=1e30")
    assert runner.run_trials(wild, workers=1, launcher="local", console=console) is False
    assert console.file.getvalue().count(" diverged: ") == 2


def test_a_corpus_seen_too_often_is_warned_of_once(pair, here, console, monkeypatch):
    monkeypatch.setattr(runner, "_run_all", lambda *_: None)
    assert runner.run_trials(pair("trainer.tokens=1280000"), workers=1, launcher="local", console=console) is False
    assert console.file.getvalue().count("warning: 1,280,000 training tokens repeat the corpus of") == 1


# ---- progress --------------------------------------------------------------------------------------------------------


def test_progress_is_a_line_now_and_then_without_a_terminal(six, console, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watch = _Watch(six.trials[:2], console)
    watch.look()
    assert console.file.getvalue() == ""
    clock[0] += 16
    watch.look()
    watch.look()
    assert console.file.getvalue() == "  0 of 2 trials finished   0% of 0.0M tokens\n"
    watch.ended(_Turn(six.trials[0]), Outcome("finished"))
    watch.ended(_Turn(six.trials[1]), Outcome("failed", "[bold]why"))
    assert console.file.getvalue().splitlines()[1:] == [
        "  none-s0 finished   50% of 0.0M tokens",
        "  expert-s0 failed: [bold]why",
    ]
