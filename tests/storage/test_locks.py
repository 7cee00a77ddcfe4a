"""Locks: free once their holder has ended, and honest about who holds them and whether it lives."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsv2.storage import locks
from dsv2.storage.locks import (
    Busy,
    Patience,
    alive,
    duration,
    hold,
    hold_when_free,
    is_held,
    is_stopped,
    meet,
    start_time,
)
from tests.references.processes import wait_for

HOLDING = """
import sys, time
from pathlib import Path
from dsv2.storage import locks
locks.PULSE_SECONDS = 0.05
with locks.hold(Path(sys.argv[1]), "this run"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def held(lock: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that hold the lock; they are killed in the end."""
    started = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDING, str(lock), *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def record(lock: Path, **changed: object) -> None:
    """Say that this process holds the lock, or something else."""
    values = {"pid": os.getpid(), "host": socket.gethostname(), "started": start_time(os.getpid())}
    values |= {"since": time.time(), "runner": None, "command": "python -m x"}
    lock.with_name("lock.json").write_text(json.dumps(values | changed))


@contextmanager
def silent_for(lock: Path, seconds: float) -> Iterator[None]:
    """The lock's last sign of life was `seconds` ago."""
    lock.touch()
    os.utime(lock, (time.time() - seconds,) * 2)
    yield


# ---- holding ---------------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_and_named_by_a_record_that_goes_with_it(lock: Path) -> None:
    assert not is_held(lock)
    assert not lock.exists()
    with hold(lock, "this run"):
        assert is_held(lock)
        stored = json.loads(lock.with_name("lock.json").read_text())
        assert (stored["pid"], stored["host"], stored["runner"]) == (os.getpid(), socket.gethostname(), None)
        with hold(lock, "this run"):  # a trial's worker and the training in it
            assert is_held(lock)
        assert lock.with_name("lock.json").exists()
    assert not is_held(lock)
    assert {path.name for path in lock.parent.iterdir()} <= {"lock"}


def test_an_error_frees_the_lock(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(lock, "this run"):
        raise ZeroDivisionError
    assert not is_held(lock)
    assert not lock.with_name("lock.json").exists()


def test_looking_whether_a_lock_is_held_makes_nobody_busy(lock: Path) -> None:
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            is_held(lock)

    lock.touch()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            with hold(lock, "this run"):
                pass
    finally:
        over.set()
        thread.join()


def test_a_process_that_holds_a_lock_gives_signs_of_life(
    lock: Path, held: Callable[..., subprocess.Popen[str]]
) -> None:
    held()
    before = lock.stat().st_mtime
    wait_for(lambda: lock.stat().st_mtime > before)


def test_a_killed_holder_frees_the_lock_at_once(lock: Path, held: Callable[..., subprocess.Popen[str]]) -> None:
    process = held()
    assert is_held(lock)
    process.kill()
    process.wait()
    assert not is_held(lock)
    assert lock.with_name("lock.json").exists()  # of the dead one
    with hold(lock, "this run"):
        assert json.loads(lock.with_name("lock.json").read_text())["pid"] == os.getpid()


# ---- meeting a holder ------------------------------------------------------------------------------------------------


def test_who_holds_a_lock_is_said_with_what_to_do(lock: Path, held: Callable[..., subprocess.Popen[str]]) -> None:
    process = held("seed=1")
    with pytest.raises(Busy) as busy:
        hold(lock, "this run").__enter__()
    assert not busy.value.meeting.idle
    who, advice = str(busy.value).removeprefix(f"{lock.parent}: ").split("; ")
    start, end = who.split(" has held this run since ")
    assert start == f"process {process.pid} (python -c {lock} seed=1)"
    assert re.fullmatch(r"[0-9:]{8} and gave a sign of life \d s ago", end)
    assert advice == f"wait for it, or end it with `kill {process.pid}`"


def test_a_stopped_holder_is_told_from_a_living_one(lock: Path, held: Callable[..., subprocess.Popen[str]]) -> None:
    process = held()
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: is_stopped(process.pid))
    meeting = meet(lock, "this run")
    assert meeting.idle
    assert " but is stopped; its last sign of life was " in meeting.who
    pid = process.pid
    assert meeting.advice == f"continue it with `kill -CONT {pid}`, or end it with `kill -KILL {pid}`"
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: not is_stopped(pid))
    assert not meet(lock, "this run").idle


def test_a_worker_is_ended_with_its_runner(lock: Path) -> None:
    record(lock, runner=os.getppid())
    with silent_for(lock, 3):
        meeting = meet(lock, "this trial")
    assert meeting.who.startswith(f"process {os.getpid()} of runner {os.getppid()} (python -m x) has held this trial")
    assert meeting.advice == f"wait for it, or end it with `kill {os.getppid()}`"
    with silent_for(lock, 300):
        assert meet(lock, "this trial").advice.endswith(f"`kill -KILL {os.getppid()} {os.getpid()}`")


def test_a_holder_on_another_host_is_judged_by_its_signs_of_life(lock: Path) -> None:
    record(lock, host="n12", started=5.0)  # a PID of another host means nothing here
    with silent_for(lock, 3):
        meeting = meet(lock, "this run")
    assert not meeting.idle
    assert meeting.who.startswith(f"process {os.getpid()} on host n12 (python -m x) has held this run since ")
    assert meeting.advice == f"wait for it, or end it there with `kill {os.getpid()}`"
    with silent_for(lock, 7300):
        meeting = meet(lock, "this run")
    assert meeting.idle
    assert meeting.who.endswith("and has given no sign of life for 2 h")
    assert meeting.advice.endswith(f" or, if n12 no longer runs, delete {lock}")


@pytest.mark.parametrize("seconds", [-5000, 0])
def test_clocks_that_differ_do_not_matter(lock: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """What counts is the clock of the file system; a sign of life from the future is one of now."""
    record(lock, host="n12")
    monkeypatch.setattr(time, "time", lambda: 1e9)  # this host's clock is years behind
    lock.touch()
    now = lock.stat().st_mtime
    os.utime(lock, (now - seconds, now - seconds))
    meeting = meet(lock, "this run")
    assert not meeting.idle
    assert "gave a sign of life 0 s ago" in meeting.who


@pytest.mark.parametrize(
    "changed",
    [
        {"started": 5.0},
        {"pid": 2**22 + 1},
        {"pid": -1},
        {"pid": 0},
        {"pid": "1"},
        {"pid": True},
        {"pid": 10**400},
        {"started": "now"},
        {"started": float("nan")},
        {"since": -1.0},
        {"since": 1e300},
        {"runner": -5},
        {"host": None},
        {"command": ["rm"]},
        {"command": "x" * 100_000},
    ],
    ids=str,
)
def test_a_record_that_cannot_be_true_names_nobody(lock: Path, changed: dict[str, object]) -> None:
    """The PID has come again, as another process; or the file was damaged or written by somebody else."""
    record(lock, **changed)
    require_unknown(lock)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 5000, b"{}"], ids=str)
def test_a_damaged_record_names_nobody(lock: Path, content: bytes) -> None:
    lock.with_name("lock.json").write_bytes(content)
    require_unknown(lock)


def test_what_is_no_file_names_nobody(lock: Path) -> None:
    require_unknown(lock)
    os.mkfifo(lock.with_name("lock.json"))
    require_unknown(lock)
    lock.with_name("lock.json").unlink()
    lock.with_name("lock.json").mkdir()
    require_unknown(lock)


def require_unknown(lock: Path) -> None:
    with silent_for(lock, 10):
        meeting = meet(lock, "this run")
    words = r"a process of which there is no record holds this run and gave a sign of life 1\d s ago"
    assert re.fullmatch(words, meeting.who)
    assert meeting.advice == f"wait for it, or find and end it: `fuser {lock}` prints its PID"
    assert not meeting.idle


# ---- waiting ---------------------------------------------------------------------------------------------------------


def test_waiting_for_a_holder_is_said_once(lock: Path, held: Callable[..., subprocess.Popen[str]]) -> None:
    process, said = held(), []
    timer = threading.Timer(1.5, process.kill)
    timer.start()
    with hold_when_free(lock, "the data", said.append):
        assert json.loads(lock.with_name("lock.json").read_text())["pid"] == os.getpid()
    (line,) = said
    assert line.startswith(f"process {process.pid} (")
    assert line.endswith("ago; waiting for it")


def test_a_stopped_holder_is_not_waited_for_without_end(
    lock: Path, held: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 1.0)
    process, said = held(), []
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(Busy, match="but is stopped"):
        hold_when_free(lock, "the data", said.append).__enter__()
    assert len(said) == 1


def test_patience_starts_again_with_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    patience = Patience()
    for idle, seconds, over in [(True, 59, False), (False, 10, False), (True, 59, False), (True, 1, False)]:
        assert patience.over(idle) is over
        clock[0] += seconds
    assert patience.over(True)


# ---- processes -------------------------------------------------------------------------------------------------------


def test_a_process_is_known_by_its_start_time() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = start_time(child.pid)
    assert started is not None
    assert started == start_time(child.pid) != start_time(os.getpid())
    assert alive(child.pid, started)
    assert alive(child.pid, started + 0.1)  # the clock was adjusted since
    assert not alive(child.pid, started - 2)  # the PID has come again
    assert not alive(child.pid, None)
    child.communicate(b"\n")
    assert start_time(child.pid) is None
    assert not is_stopped(child.pid)
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    wait_for(lambda: start_time(zombie.pid) is None)  # though nobody has waited for it
    zombie.wait()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (3 * 86400, "3 days")]
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
