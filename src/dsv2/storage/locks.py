"""Locks whose holders say who they are.

The system frees a lock when its holder ends, however it ends. Beside a lock that is held, `<lock>.json` names the
process. The time of the lock's file is the holder's last sign of life: it sets it every `PULSE_SECONDS`. Times are
compared on the clock of the file system, so the clocks of two hosts may differ.

Since PIDs are reused, a process is identified by PID and start time.
"""

import os
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import parent_process
from pathlib import Path
from textwrap import shorten
from typing import Annotated, NamedTuple

import psutil
from filelock import FileLock, Timeout
from pydantic import Field, TypeAdapter, ValidationError

from dsv2.storage.files import write_json
from dsv2.storage.sealed import Damaged, read_object

PULSE_SECONDS = 5.0  # between two signs of life
SILENT_SECONDS = 120.0  # without a sign of life; NFS may show times that are a minute old
PATIENCE_SECONDS = 60.0  # for a holder that is stopped or silent, when there is nothing else to do
GRACE_SECONDS = 0.3  # `is_held` takes a lock for a moment
WAIT_SECONDS = 0.5  # between two tries at a lock that is waited for
SAME_SECONDS = 1.0  # tolerance of start times, since the system clock may be adjusted in between
MOST_BYTES = 4_000  # of a command that is recorded, and twice that of a record
MOST_CHARACTERS = 100  # of a command that is shown

PID = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
Seconds = Annotated[float, Field(ge=0, lt=1e11, strict=True)]  # since 1970


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as it recorded itself."""

    pid: PID
    host: str
    started: Seconds | None  # of the process
    since: Seconds  # when it took the lock, on the clock of the file system
    runner: PID | None  # the process whose worker it is
    command: str


class Meeting(NamedTuple):
    """What is known about the holder of a lock, in words."""

    who: str  # a sentence without its full stop
    advice: str
    idle: bool  # it is stopped or has given no sign of life for `SILENT_SECONDS`

    def __str__(self) -> str:
        return f"{self.who}; {self.advice}"


class Busy(RuntimeError):
    """Another process holds a lock; the message says who and what to do."""

    def __init__(self, subject: object, meeting: Meeting) -> None:
        super().__init__(f"{subject}: {meeting}")
        self.meeting = meeting


@contextmanager
def hold(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock; a thread may hold it several times. Raises Busy if another process holds it.

    `what` names in messages what the lock protects, as in "this run".
    """
    file = FileLock(lock, is_singleton=True)
    try:
        file.acquire(timeout=GRACE_SECONDS)
    except Timeout:
        raise Busy(lock.parent, meet(lock, what)) from None
    try:
        if file.lock_counter > 1:
            yield
        else:
            with _recorded(lock):
                yield
    finally:
        file.release()


@contextmanager
def hold_when_free(lock: Path, what: str, say: Callable[[str], object]) -> Iterator[None]:
    """Hold a lock, waiting for it if necessary; `say` is told for whom. Raises Busy if that process has stopped."""
    patience, told = Patience(), None
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(lock, what))
                break
            except Busy as busy:
                meeting = busy.meeting
                if patience.over(meeting.idle):
                    raise
            if told != (told := (meeting.advice, meeting.idle)):
                say(f"{meeting.who}; waiting for it")
            time.sleep(WAIT_SECONDS)
        yield


class Patience:
    """Tells whether to go on waiting for holders of locks."""

    def __init__(self) -> None:
        self.since: float | None = None

    def over(self, idle: bool) -> bool:
        """Whether all that is waited for has now been idle for `PATIENCE_SECONDS`."""
        if not idle:
            self.since = None
            return False
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        return now - self.since >= PATIENCE_SECONDS


def is_held(lock: Path) -> bool:
    """Whether some process holds a lock now."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def _recorded(lock: Path) -> Iterator[None]:
    """Record this process as the holder of a lock, and give signs of life."""
    os.utime(lock)
    parent = parent_process()
    holder = Holder(
        pid=os.getpid(),
        host=socket.gethostname(),
        started=start_time(os.getpid()),
        since=lock.stat().st_mtime,
        runner=parent.pid if parent is not None else None,
        command=_command(),
    )
    write_json(_record(lock), asdict(holder))
    over = threading.Event()

    def give_signs() -> None:
        while not over.wait(PULSE_SECONDS):
            try:
                os.utime(lock)
            except OSError:  # the next one may succeed; nothing but a message depends on it
                continue

    thread = threading.Thread(target=give_signs, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _record(lock).unlink(missing_ok=True)


def _record(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.json")


def _command() -> str:
    """Return the command of this process or, in a worker, of its runner."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    return shlex.join(["python", *(["-m", name] if name else sys.argv[:1]), *sys.argv[1:]])[:MOST_BYTES]


# ---- what can be said of a holder ------------------------------------------------------------------------------------


def meet(lock: Path, what: str) -> Meeting:
    """Describe the process that holds a lock, and say what can be done."""
    now = _clock(lock.parent)
    age = max(now - lock.stat().st_mtime, 0.0)
    silent = age > SILENT_SECONDS
    sign = f"has given no sign of life for {duration(age)}" if silent else f"gave a sign of life {duration(age)} ago"
    holder = _read(lock)
    if holder is None or (_here(holder) and not alive(holder.pid, holder.started)):
        who = f"a process of which there is no record holds {what} and {sign}"
        return Meeting(who, f"wait for it, or find and end it: `fuser {lock}` prints its PID", silent)
    here, pids = _here(holder), [pid for pid in (holder.runner, holder.pid) if pid is not None]
    words, head = " ".join(map(str, pids)), pids[0]
    who = f"process {holder.pid}" + (f" of runner {holder.runner}" if holder.runner is not None else "")
    who += (
        f"{'' if here else f' on host {holder.host}'} ({shorten(holder.command, MOST_CHARACTERS, placeholder=' ...')})"
    )
    who += f" has held {what} since {_moment(time.time() - (now - holder.since))}"
    stopped = [pid for pid in pids if is_stopped(pid)] if here else []
    if holder.pid in stopped:
        who += f" but is stopped; its last sign of life was {duration(age)} ago"
        numbers = " ".join(map(str, stopped))
        return Meeting(who, f"continue it with `kill -CONT {numbers}`, or end it with `kill -KILL {words}`", True)
    if here:
        end = f"`kill -KILL {words}`" if silent else f"`kill {head}`"
        return Meeting(f"{who} and {sign}", f"wait for it, or end it with {end}", silent)
    advice = f"wait for it, or end it there with `kill {head}`"
    if silent:
        advice = f"end it there with `kill -KILL {words}` or, if {holder.host} no longer runs, delete {lock}"
    return Meeting(f"{who} and {sign}", advice, silent)


def _read(lock: Path) -> Holder | None:
    """Return the recorded holder; None if the record is missing or cannot be what a holder wrote."""
    record = _record(lock)
    try:
        if not record.is_file():  # a pipe would be waited for
            return None
        return TypeAdapter(Holder).validate_python(read_object(record, 2 * MOST_BYTES))
    except (OSError, Damaged, ValidationError):
        return None


def _here(holder: Holder) -> bool:
    return holder.host == socket.gethostname()


def _clock(folder: Path) -> float:
    """Return the time on the clock of the file system, in seconds since 1970."""
    try:
        with tempfile.TemporaryFile(dir=folder) as scratch:
            return os.fstat(scratch.fileno()).st_mtime
    except OSError:  # a full disk, or a folder that only others may write to
        return time.time()


def duration(seconds: float) -> str:
    """Format a duration in its largest unit, as in 5 min."""
    for unit, size in (("days", 2 * 86400), ("h", 7200), ("min", 120)):
        if seconds >= size:
            return f"{seconds / (86400 if unit == 'days' else 3600 if unit == 'h' else 60):.0f} {unit}"
    return f"{seconds:.0f} s"


def _moment(seconds: float) -> str:
    """Format a time, with its date if that is not today's."""
    moment = time.localtime(seconds)
    today = moment[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M", moment)


# ---- processes -------------------------------------------------------------------------------------------------------


def start_time(pid: int) -> float | None:
    """Return the start time of a process in seconds since 1970, or None if it is not alive."""
    try:
        process = psutil.Process(pid)
        return None if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else process.create_time()
    except psutil.NoSuchProcess:
        return None


def alive(pid: int, started: float | None) -> bool:
    """Whether the process with this PID and start time is alive."""
    now = start_time(pid)
    return now is not None and started is not None and abs(now - started) < SAME_SECONDS


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by Ctrl-Z, SIGSTOP or a debugger."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.NoSuchProcess:
        return False
