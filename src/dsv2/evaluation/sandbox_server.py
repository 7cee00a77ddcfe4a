"""The process in which programs run; `dsv2.evaluation.sandbox` starts it, and says what it keeps from whom.

It imports the standard library alone. For each job on stdin it forks a process for one program, watches it, kills it
with whatever it has started, and answers on stdout. Messages are JSON, preceded by their length.
"""

import ast
import builtins
import contextlib
import importlib
import io
import json
import os
import random
import resource
import select
import signal
import struct
import sys
import time
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

HEADER = struct.Struct(">I")  # bytes of the message that follows
REPORT = 3  # descriptor on which the process of a program reports
MOST_REPORTED = 1 << 20  # bytes of a report
NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl
# Imported once, before the forks: if this is root, programs run as nobody, who may not be able to read the library.
_PRELOADED = """
abc array ast base64 bisect calendar cmath collections collections.abc copy csv dataclasses datetime decimal difflib
enum fractions functools hashlib heapq html inspect itertools json keyword linecache math numbers operator pprint queue
random re statistics string struct textwrap threading time traceback types typing unicodedata uuid warnings zlib
_strptime encodings.ascii encodings.latin_1
"""
# What these modules do raises no audit event, or not in every version of Python.
_REFUSED = "_ctypes ctypes _posixsubprocess _signal signal subprocess multiprocessing mmap _mmap"
# Events of what stays within a process. All others are refused, and so are those of later versions of Python.
_ALLOWED = """
array.__new__ builtins.id builtins.input builtins.input/result code.__new__ compile exec function.__new__ marshal.loads
object.__getattr__ object.__setattr__ object.__delattr__ os.listdir os.scandir pickle.find_class sys._getframe
sys._getframemodulename sys.excepthook sys.unraisablehook
"""
PRELOADED, REFUSED, ALLOWED = _PRELOADED.split(), frozenset(_REFUSED.split()), frozenset(_ALLOWED.split())
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def literal(value: object) -> str:
    """Return the text of a plain value: None, a boolean, number or string, and lists, tuples, sets, dicts of them.

    Equal values of one type have one text, and values of different types different ones, 1 and 1.0 included. Raises
    TypeError for any other type, subclasses included, whose text or equality could be anything.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, complex, str, bytes):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset) and kind in (list, tuple, set, frozenset):
        items = [literal(item) for item in value]
        return f"{kind.__name__}[{', '.join(items if kind in (list, tuple) else sorted(items))}]"
    if isinstance(value, dict) and kind is dict:
        return f"dict[{', '.join(sorted(f'{literal(key)}: {literal(item)}' for key, item in value.items()))}]"
    raise TypeError(f"{kind.__name__} is no plain type")


SINGLE = frozenset((*map(type, (None, True, 1, 1.0, 1j, "", b"", range(1))), type, Decimal, Fraction))
SEVERAL = frozenset((list, tuple, set, frozenset, dict, deque, Counter, OrderedDict, defaultdict))


def plain(value: Any) -> Any:
    """Return a value that is compared as Python's own types compare.

    Raises TypeError for any other type, such as one whose objects are equal to everything.
    """
    if type(value) in SEVERAL:
        for item in value.items() if isinstance(value, dict) else value:
            plain(item)
    elif type(value) not in SINGLE:
        raise TypeError(f"{type(value).__name__} is no plain type, so that checks cannot compare it")
    return value


def main() -> None:
    """Answer jobs until stdin ends. Arguments: the limits as JSON, and whether programs are audited."""
    limits, audited = json.loads(sys.argv[1]), sys.argv[2] == "audited"
    for name in PRELOADED:
        importlib.import_module(name)
    prctl = _prctl()
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a program leaves behind becomes a child of this process
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    while (job := receive(requests)) is not None:
        send(replies, supervise(job, limits, audited=audited, prctl=prctl))


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message."""
    data = json.dumps(message).encode()
    stream.write(HEADER.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read one message; None at the end of the stream, also of one that is cut off."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    data = stream.read(size := HEADER.unpack(header)[0])
    return json.loads(data) if len(data) == size else None


def _prctl() -> Callable[[int, int], object]:
    """Return Linux's prctl; elsewhere, a function that does nothing."""
    if sys.platform != "linux":
        return lambda option, value: None
    import ctypes

    function: Callable[[int, int], object] = ctypes.CDLL(None).prctl
    return function


# ---- around a program ------------------------------------------------------------------------------------------------


def supervise(
    job: dict[str, Any], limits: dict[str, Any], *, audited: bool, prctl: Callable[[int, int], object]
) -> dict[str, Any]:
    """Run a job's program in a process of its own: how it ended, its signal or exit status, report and output."""
    (report, report_end), (output, output_end) = os.pipe(), os.pipe()
    server, pid = os.getpid(), os.fork()
    if pid == 0:
        try:
            run(job, limits, server, report_end, output_end, audited=audited, prctl=prctl)
        finally:
            os._exit(1)
    os.close(report_end)
    os.close(output_end)
    received = {report: bytearray(), output: bytearray()}
    most, waiting = {report: MOST_REPORTED, output: limits["output_bytes"]}, {report, output}
    deadline, ended = time.monotonic() + limits["wall_seconds"], ""
    while not ended:
        left = deadline - time.monotonic()
        for pipe in select.select(waiting, [], [], max(left, 0))[0]:
            received[pipe] += (data := os.read(pipe, 1 << 16))
            if len(received[pipe]) > most[pipe]:
                ended = "output"
            if not data:
                waiting.remove(pipe)
        if report not in waiting:  # the process is over or has closed it, so that nothing more can count
            ended = ended or "exited"
        elif left <= 0:
            ended = ended or "time"
    status = _end(pid)
    os.set_blocking(output, False)
    with contextlib.suppress(BlockingIOError):
        received[output] += os.read(output, 1 << 16)
    os.close(report)
    os.close(output)
    return {
        "ended": ended,
        "status": os.waitstatus_to_exitcode(status),
        "report": received[report].decode(errors="replace"),
        "output": received[output][: limits["output_bytes"]].decode(errors="replace"),
    }


def _end(pid: int) -> int:
    """Kill a program's process, its group and its descendants; return the wait status of the first."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for child in _children():
                    os.kill(child, signal.SIGKILL)  # those of its own come to us once it is dead
        except ChildProcessError:
            return status


def _children() -> Iterator[int]:
    """Yield the child processes of this one, as far as /proc says."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(path.parent.name)


# ---- in the process of a program -------------------------------------------------------------------------------------


def run(
    job: dict[str, Any],
    limits: dict[str, Any],
    server: int,
    report: int,
    output: int,
    *,
    audited: bool,
    prctl: Callable[[int, int], object],
) -> NoReturn:
    """Confine this process, run the program, evaluate the expressions and run the checks; report, and exit."""
    os.setsid()
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2), (report, REPORT)):
        os.dup2(source, target)  # of pipes that lie above REPORT, since the server's own lie below
    os.closerange(REPORT + 1, 256)
    _limit(limits)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which resets it
    if os.getppid() != server:  # it died before that
        os._exit(1)
    sys.stdin = io.StringIO(job["stdin"])
    sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    random.seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    sys.modules["__main__"] = types.ModuleType("__main__")  # nor is what this module holds within easy reach
    for name in REFUSED:
        sys.modules.pop(name, None)
    if audited:
        sys.addaudithook(_auditor())
    _report(_outcome(job, namespace))


def _outcome(job: dict[str, Any], namespace: dict[str, Any]) -> dict[str, Any]:
    values: list[tuple[str | None, str | None]] = []
    secret = None
    if (error := _attempt(lambda: exec(compile(job["program"], "<program>", "exec"), namespace))[1]) is None:
        for expression in job["expressions"]:
            values.append(_attempt(partial(_evaluated, expression, namespace)))
        if job["checks"] is not None:
            error = _attempt(lambda: _check(job["checks"], namespace))[1]
            secret = job["secret"] if error is None else None
    return {"values": values, "error": error, "secret": secret}


def _check(checks: str, namespace: dict[str, Any]) -> None:
    """Run checks beside what the program has defined, in which whatever is compared has to be plain."""
    tree = ast.fix_missing_locations(_Comparisons().visit(ast.parse(checks, "<checks>")))
    exec(compile(tree, "<checks>", "exec"), namespace | {_Comparisons.NAME: plain})


class _Comparisons(ast.NodeTransformer):
    """Puts a call of `plain` around the operands of comparisons, but for those of identity."""

    NAME = "_plain_"

    def visit_Compare(self, node: ast.Compare) -> ast.Compare:
        self.generic_visit(node)
        if not all(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops):
            node.left, node.comparators = self._guarded(node.left), list(map(self._guarded, node.comparators))
        return node

    def _guarded(self, operand: ast.expr) -> ast.expr:
        return ast.Call(ast.Name(self.NAME, ast.Load()), [operand], [])


def _evaluated(expression: str, namespace: dict[str, Any]) -> str:
    return literal(eval(expression, namespace))


def _attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return the result of an action, or what it raised, in a line; `SystemExit` is an error like others."""
    try:
        return action(), None
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        return None, text[:300].removesuffix(": ")


def _report(outcome: dict[str, Any]) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):  # of an output that the program has closed
        sys.stdout.flush()
    data = memoryview(json.dumps(outcome).encode())
    while data:
        data = data[os.write(REPORT, data) :]
    os._exit(0)


def _limit(limits: dict[str, Any]) -> None:
    """Limit what this process may use; no limit can be raised again."""
    for name, bound in {"AS": limits["memory_bytes"], "FSIZE": 0, "NOFILE": 64, "CORE": 0, "NPROC": 0}.items():
        with contextlib.suppress(ValueError):  # of macOS, which knows AS but refuses to limit it
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (bound, bound))
    seconds = limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU, which says why, before SIGKILL
    if os.geteuid() == 0:  # whom no limit of processes binds
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _auditor() -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that refuses what leaves the process. Nothing that it uses can be reached by name."""
    allowed, refused, writing = ALLOWED, REFUSED, WRITING
    library = f"{Path(os.__file__).parent}/"

    def reads_library(path: object, mode: object, flags: int) -> bool:
        return type(path) is str and path.startswith(library) and "/.." not in path and not flags & writing

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event in allowed or (event == "open" and reads_library(*args)):  # the latter for imports
            return
        if event == "import":
            if args[0].partition(".")[0] not in refused:
                return
            event = f"import of {args[0]}"
        raise PermissionError(f"{event} is not allowed here")

    return audit


if __name__ == "__main__":
    main()
