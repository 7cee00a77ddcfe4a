"""One trial in a worker: under its lock, its failure recorded, and tried again by the next command alone."""

import errno
import json
import time

import pytest
from filelock import FileLock

from ablations.running.worker import LOG, Outcome, run_trial
from dsv2.config import plain
from dsv2.storage.locks import is_held
from dsv2.storage.rundir import LOCK, finished
from dsv2.storage.space import MARGIN, DiskFull
from dsv2.training import fit


def test_a_trial_runs_under_its_lock(six):
    trial = six.trials[0]
    trial.folder.mkdir(parents=True)
    lock = trial.folder / LOCK
    assert not is_held(lock)
    with FileLock(lock):
        assert is_held(lock)
        outcome = run_trial(plain(trial.run), trial.folder, 0.0)
        assert outcome.status == "busy"
        assert outcome.error == f"{trial.folder}: {outcome.meeting}"
        assert "holds this trial" in outcome.meeting.who
    assert not is_held(lock)
    assert sorted(path.name for path in trial.folder.iterdir()) in ([LOCK], [])


def test_a_trial_finishes_once(small, capfd):
    trial = small.trials[0]
    assert run_trial(plain(trial.run), trial.folder, 0.0) == Outcome("finished")
    ended = finished(trial.folder)
    assert (ended["arm"], ended["seed"], ended["fingerprint"]) == ("none", 0, trial.folder.name)
    assert (trial.folder / LOG).is_file()
    written = (trial.folder / "result.json").stat().st_mtime_ns
    assert run_trial(plain(trial.run), trial.folder, 0.0) == Outcome("finished")
    assert (trial.folder / "result.json").stat().st_mtime_ns == written


def test_a_failure_is_recorded_and_tried_again_by_the_next_command_only(six, monkeypatch):
    trial, tries = six.trials[0], []

    def broken(run, folder, *_):
        tries.append(folder)
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(fit, "_train", broken)
    before = time.time() - 60
    failed = Outcome("failed", "ZeroDivisionError: nothing to divide by")
    assert run_trial(plain(trial.run), trial.folder, before) == failed
    stored = json.loads((trial.folder / "result.json").read_text())
    assert "in broken" in stored["traceback"]
    assert run_trial(plain(trial.run), trial.folder, before) == failed  # the other runner, which started as early
    assert len(tries) == 1
    assert run_trial(plain(trial.run), trial.folder, time.time() + 60) == failed  # a later command
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("raised", "status", "needed"),
    [
        (fit.Interrupted("stopped by SIGTERM"), "interrupted", 0),
        (OSError(errno.ENOSPC, "No space left on device"), "full", MARGIN),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "full", MARGIN),
    ],
    ids=["SIGTERM", "disk", "quota"],
)
def test_what_is_no_fault_of_the_trial_is_no_failure(six, monkeypatch, raised, status, needed):
    """It stays unfinished, so that it is resumed."""

    def stopped(*_):
        raise raised

    monkeypatch.setattr(fit, "_train", stopped)
    trial = six.trials[0]
    outcome = run_trial(plain(trial.run), trial.folder, 0.0)
    assert outcome.status == status
    assert outcome.needed >= needed
    assert not (trial.folder / "result.json").exists()
    if needed:
        assert outcome.error == str(DiskFull(trial.folder, raised.errno))


def test_a_trial_that_diverges_says_so(pair):
    trial = pair("optim.lr=1e30").trials[0]
    outcome = run_trial(plain(trial.run), trial.folder, 0.0)
    assert outcome.status == "diverged"
    assert outcome.error.endswith("in step 2")
    assert json.loads((trial.folder / "result.json").read_text())["status"] == "diverged"
