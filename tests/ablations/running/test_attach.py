"""A runner as a process of its own: found again, shared by callers, stopped, and honest about how it ended."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import ablations
from ablations.running import STOPPED
from ablations.running.attach import (
    LOG,
    RECORD,
    AnotherRequest,
    Runner,
    RunnerFailed,
    attach,
    find,
    in_notebook,
    last,
)
from ablations.studies import study
from dsv2.config import ConfigError
from dsv2.storage.locks import start_time
from dsv2.storage.rundir import finished
from tests.references.processes import wait_for

ROOT = Path(ablations.__file__).parents[1]
CALLER = """
import sys
from ablations import study
from ablations.running.attach import attach
print(attach(study(sys.argv[1], seeds=[0], overrides=sys.argv[2:]), workers=1).pid)
"""


def record(folder: Path, **changed) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"pid": os.getpid(), "started": start_time(os.getpid()), "request": "other"}
    (folder / RECORD).write_text(json.dumps(values | {"command": ["python", "-m", "x"]} | changed))


def living(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    return [pid for pid in psutil.pids() if start_time(pid) is not None and os.getpgid(pid) == group]


# ---- who lives -------------------------------------------------------------------------------------------------------


def test_stale_records_are_ignored(tmp_path):
    assert find(tmp_path) is None
    record(tmp_path)
    assert find(tmp_path).pid == os.getpid()
    record(tmp_path, started=start_time(os.getpid()) + 0.1)  # the clock was adjusted since
    assert find(tmp_path).pid == os.getpid()
    for started in (start_time(os.getpid()) - 2, None):  # the PID has come again; it ended before it was asked
        record(tmp_path, started=started)
        assert find(tmp_path) is None
        assert last(tmp_path).pid == os.getpid()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record(tmp_path, pid=gone.pid)
    assert find(tmp_path) is None
    former = '{"pid": 1, "birth": "1 2", "request": "other", "command": []}'  # as records were until November 2026
    for text in ("", '{"pid": 1', "[]", '{"pid": 1}', former, "[" * 5000, " " * 10**7):
        (tmp_path / RECORD).write_text(text)
        assert find(tmp_path) is last(tmp_path) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"pid": -1},
        {"pid": 0},
        pytest.param({"pid": str(os.getpid())}, id="own pid as text"),  # another number in every process
        {"pid": 10**400},
        {"started": "now"},
        {"started": 1e300},
        {"request": 5},
        {"command": "rm -r"},
        {"command": [1]},
    ],
    ids=str,
)
def test_a_record_that_no_runner_wrote_is_ignored(tmp_path, changed):
    record(tmp_path, **changed)
    assert find(tmp_path) is last(tmp_path) is None


def test_a_runner_of_other_trials_is_not_taken_for_ours(small):
    record(small.folder)
    words = rf"already running with other .*\(process {os.getpid()}, for \d+ \w+: -m x\); wait for it, or stop it with"
    with pytest.raises(AnotherRequest, match=words):
        attach(small)


def test_a_runner_that_is_stopped_is_told_of_and_ends_on_demand(small):
    """A process that is stopped gets no signal but SIGKILL until it is continued."""
    program = "import time\ntry: print('up', flush=True), time.sleep(600)\nexcept KeyboardInterrupt: print('bye')"
    command = [sys.executable, "-c", program]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout.readline() == "up\n"
    record(small.folder, pid=child.pid, started=start_time(child.pid))
    runner = find(small.folder)
    assert runner.waits() == ""
    child.send_signal(signal.SIGSTOP)
    wait_for(runner.waits)
    advice = f"process {child.pid} is stopped; continue it with `kill -CONT -{child.pid}` or end it with .stop()"
    assert runner.waits() == advice
    with pytest.raises(AnotherRequest, match=r"other seeds.*; " + re.escape(advice)):
        attach(small)
    runner.stop()
    assert child.communicate()[0] == "bye\n"
    assert not runner.alive()
    assert runner.waits() == ""


def test_this_is_no_notebook():
    assert not in_notebook()


# ---- how it ended ----------------------------------------------------------------------------------------------------


def test_the_end_is_told_from_files(small):
    record(small.folder, started=None)
    runner = Runner(folder=small.folder, **json.loads((small.folder / RECORD).read_text()))
    (small.folder / LOG).write_text("\n".join(f"line {number}" for number in range(40)) + "\nKeyError: 'what'\n")
    with pytest.raises(RunnerFailed, match="exited early") as broken:
        runner.check(small)
    assert str(broken.value).endswith("line 39\nKeyError: 'what'")
    assert "line 25" not in str(broken.value)
    (small.folder / LOG).write_text(f"6 trials\n{STOPPED}\n")
    assert runner.check(small) is False
    (small.folder / "report").mkdir()
    (small.folder / "report" / "report.html").write_text("<html>")
    assert runner.check(small) is False  # reported, but no trial has finished
    os.utime(small.folder / "report" / "report.html", (0, 0))  # of an earlier run
    (small.folder / LOG).write_text("")
    with pytest.raises(RunnerFailed, match="no output"):
        runner.check(small)


# ---- real runners ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_callers_at_once_share_one_runner(small, ended):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", CALLER, small.source, *small.overrides]
    with ThreadPoolExecutor(3) as pool:
        said = list(
            pool.map(lambda _: subprocess.check_output(command, env=os.environ | {"PYTHONPATH": path}), range(3))
        )
    pids = {int(text) for text in said}
    assert len(pids) == 1
    runner = attach(small)
    ended(runner)
    assert {runner.pid} == pids
    wait_for(lambda: not runner.alive(), 300)
    assert runner.check(small) is True
    assert all(finished(trial.folder) for trial in small.trials)
    assert find(small.folder) is None
    assert "report.html" in runner.log.read_text()


@pytest.mark.slow
def test_stopping_is_resumable(pair, ended):
    long = pair("trainer.tokens=12800")
    assert long.stop() is False
    runner = attach(long, workers=2)
    ended(runner)
    wait_for(lambda: list(long.folder.glob("trials/*/checkpoints/step-*.ckpt")))
    assert long.stop() is True
    assert not runner.alive()
    assert runner.check(long) is False
    checkpoints = list(long.folder.glob("trials/*/checkpoints/step-*.ckpt"))
    assert checkpoints
    wait_for(lambda: not living(runner.pid), 5)
    again = attach(long, workers=2)
    ended(again)
    assert again.pid != runner.pid
    wait_for(lambda: not again.alive(), 300)
    assert again.check(long) is True


@pytest.mark.slow
def test_failing_trials_and_a_failing_runner(pair, corpus, tmp_path, ended, monkeypatch):
    wild = pair("optim.lr=1e30")
    runner = attach(wild)
    ended(runner)
    wait_for(lambda: not runner.alive(), 300)
    assert runner.check(wild) is False
    texts = tmp_path / "texts"
    shutil.copytree(Path(corpus).parent, texts)
    broken = pair(f"data.path={texts}/*.txt")
    shutil.rmtree(texts)
    with pytest.raises(ConfigError, match=r"data\.path"):
        attach(broken)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    runner = attach(wild)
    wait_for(lambda: not runner.alive())
    with pytest.raises(RunnerFailed, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        runner.check(wild)


@pytest.mark.slow
def test_a_study_that_only_the_caller_knows_has_a_runner_too(mine, ended):
    """A dictionary is no file that the runner could read: it reads what was kept of it."""
    planned = study(mine, seeds=[0]).with_arm("more", ["loss.expert=0.02"])
    runner = attach(planned, workers=1)
    ended(runner)
    wait_for(lambda: not runner.alive(), 300)
    assert runner.check(planned) is True
    assert list(planned.results()["arm"]) == ["none", "expert", "more"]
