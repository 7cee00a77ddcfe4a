"""Programs written by a model, run where they can do little harm, and judged by what they compute.

A server process (`sandbox_server`) forks one process per program. That process has an empty environment, a session of
its own, no files, limits of time, memory and output, may not start others, and is killed with all it has started. It
leaves to itself only what stays within: an audit hook refuses to open files outside Python's library and everything
else that Python can ask of the system.

This stops programs that go wrong, in whatever way, and what models find out about tests. It does not stop a person who
attacks the interpreter itself: the programs are processes of this user (of nobody, if this is root) on this machine,
with its kernel and network behind nothing but the hook. Run those of a model that is not trusted in a container or a
virtual machine besides. Outside of Linux, processes that a program manages to detach are not found.
"""

import json
import secrets
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, Self

from dsv2.config import ConfigBase
from dsv2.evaluation.sandbox_server import literal as literal
from dsv2.evaluation.sandbox_server import receive, send

SERVER = Path(__file__).with_name("sandbox_server.py")
# Nothing of ours but a fixed order of sets, so that a program gives the same again: the environment is not ignored
# (-I) but empty. -s and -P keep the user's packages and the script's folder from the path, -S all others.
COMMAND = ("-s", "-S", "-P", "-B", "-X", "utf8")
ENVIRONMENT = {"PYTHONHASHSEED": "0"}

# ok: it ran to its end; error: it or a check raised; exit: it ended itself; time, output: beyond these limits; killed:
# by a signal. Beyond the limit of memory it raises MemoryError, or is killed.
Ended = Literal["ok", "error", "exit", "time", "output", "killed"]


class SandboxBroken(RuntimeError):
    """The sandbox itself failed, so that nothing is known about the program."""


@dataclass(frozen=True, kw_only=True)
class Limits(ConfigBase):
    """What one program may use; one that exceeds a limit has failed."""

    cpu_seconds: int = 2
    wall_seconds: float = 10.0  # for programs that wait; more than cpu_seconds, so that a busy machine changes nothing
    memory_bytes: int = 512 << 20  # of address space, with the interpreter's own 30 MB
    output_bytes: int = 64 << 10  # printed

    def __post_init__(self) -> None:
        for name in ("cpu_seconds", "wall_seconds", "memory_bytes", "output_bytes"):
            self.require(getattr(self, name) > 0, name, "positive")


class Program(NamedTuple):
    """A program and what is asked of it once it has run, in its own namespace.

    What `expressions` should give never enters the sandbox, so that nothing in there can pretend to have computed it.
    `checks` are code that fails by raising; they have passed if the process reports a secret that it was given, which a
    program that ends early does not bring about. What they compare has to be of Python's own types, so that no object
    is equal to everything. A program that searches the memory of its process may find the secret: prefer expressions
    where there is a choice.
    """

    source: str
    expressions: tuple[str, ...] = ()
    checks: str | None = None
    stdin: str = ""


class Outcome(NamedTuple):
    """How a program ended, and what it gave."""

    ended: Ended
    error: str | None  # what was raised, by program or checks, or how the process ended; None if ok
    values: tuple[str | None, ...]  # the `literal` of each expression; None where one failed or is no plain value
    passed: bool  # whether there were checks and all of them passed
    output: str  # what was printed, of stdout and stderr together


class Sandbox:
    """Runs programs, many to a server process, `workers` of them at a time.

    Use as a context manager, or `close` it; it is closed too when it is no longer referred to. Raises SandboxBroken if
    it does not work on this machine.
    """

    def __init__(self, limits: Limits | None = None, *, workers: int = 2, audited: bool = True) -> None:
        """Start the servers; `audited=False` leaves out the audit hook, for tests of what remains without it."""
        self.limits = limits or Limits()
        self._audited = audited
        self._servers: SimpleQueue[_Server] = SimpleQueue()
        self._pool = ThreadPoolExecutor(workers)
        self._all = [_Server(self.limits, audited=audited) for _ in range(workers)]
        for server in self._all:
            self._servers.put(server)
        self._finalizer = weakref.finalize(self, _close, self._all, self._pool)
        working = self.run([Program("x = 6 * 7", ("x",), "assert x == 42")])[0]
        if working[:4] != ("ok", None, ("42",), True):
            self.close()
            raise SandboxBroken(f"the sandbox does not work on this machine: {working}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the servers, and with them what runs in them."""
        self._finalizer()

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        """Run programs independently of one another, and return their outcomes in their order.

        Raises SandboxBroken if a server was lost twice over the same program.
        """
        return list(self._pool.map(self._run, programs))

    def _run(self, program: Program) -> Outcome:
        server = self._servers.get()
        try:
            return server.run(program)
        finally:
            self._servers.put(server)


def _close(servers: Sequence["_Server"], pool: ThreadPoolExecutor) -> None:
    for server in servers:
        server.close()
    pool.shutdown()


class _Server:
    """One server process, started again if it was lost."""

    def __init__(self, limits: Limits, *, audited: bool) -> None:
        self.arguments = [json.dumps(asdict(limits)), "audited" if audited else "free"]
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *COMMAND, SERVER, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def run(self, program: Program) -> Outcome:
        for _ in range(2):
            secret = secrets.token_hex(16)
            answer = self._ask({**self._job(program), "secret": secret})
            if answer is not None:
                return _outcome(answer, program, secret)
            self.close()
            self.process = self._started()
        raise SandboxBroken("the sandbox lost its server twice while it ran one program")

    def _job(self, program: Program) -> dict[str, Any]:
        job = {"program": program.source, "expressions": program.expressions}
        return {**job, "checks": program.checks, "stdin": program.stdin}

    def _ask(self, job: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            send(self.process.stdin, job)
        except BrokenPipeError:
            return None
        return receive(self.process.stdout)


def _outcome(answer: dict[str, Any], program: Program, secret: str) -> Outcome:
    """Read a server's answer."""
    nothing, output = (None,) * len(program.expressions), answer["output"]
    report = _report(answer["report"], len(nothing)) if answer["ended"] == "exited" else None
    if report is not None:
        error, values, told = report
        passed = program.checks is not None and error is None and told == secret
        return Outcome("ok" if error is None else "error", error, values or nothing, passed, output)
    ended: Ended = answer["ended"]
    if answer["ended"] == "exited":
        status = answer["status"]
        ended = "time" if status == -signal.SIGXCPU else "killed" if status < 0 else "exit"
        why = f"ended by signal {-status}" if status < 0 else f"ended itself with status {status}"
    if ended in ("time", "output"):
        why = f"exceeded the limit of {ended}"
    return Outcome(ended, why, nothing, False, output)


def _report(text: str, num_values: int) -> tuple[str | None, tuple[str | None, ...], object] | None:
    """Return the error, the values, empty after an error, and the secret of a report; None for no report.

    The program may have written it, so that it can be anything.
    """
    try:
        report = json.loads(text)
        values = tuple(value for value, _ in report["values"])
        error, secret = report["error"], report["secret"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    whole = len(values) == num_values or (error is not None and not values)
    texts = all(isinstance(each, str | None) for each in (error, *values))
    return (error, values, secret) if whole and texts else None
