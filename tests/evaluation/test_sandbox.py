"""What programs can give, and a battery of hostile ones, with the audit hook and without."""

import gc
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from dsv2.evaluation import sandbox
from dsv2.evaluation.sandbox import Limits, Outcome, Program, Sandbox, SandboxBroken

TIGHT = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=256 << 20)
EQUAL = "class Equal:\n    def __eq__(self, other): return True\n    def __repr__(self): return '42'\n"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(TIGHT) as box:
        yield box


@pytest.fixture(scope="module")
def unaudited() -> Iterator[Sandbox]:
    """What remains without the hook, as if a program had got around it."""
    with Sandbox(TIGHT, audited=False) as box:
        yield box


def run(box: Sandbox, source: str, *expressions: str, checks: str | None = "pass") -> Outcome:
    (outcome,) = box.run([Program(source, expressions, checks)])
    return outcome


# ---- what programs give ----------------------------------------------------------------------------------------------


def test_values_are_those_of_the_expressions(box: Sandbox) -> None:
    outcome = run(box, "def double(x):\n    return x * 2", "double(3)", "double('a')", "double(None)", "[double(1.0)]")
    assert outcome.ended == "ok"
    assert outcome.values == ("6", "'aa'", None, "list[2.0]")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "True"),
        (1, "1"),
        (1.0, "1.0"),
        ((1, "a"), "tuple[1, 'a']"),
        ({"b": 1, "a": {2, 10}}, "dict['a': set[10, 2], 'b': 1]"),
        (None, "None"),
    ],
)
def test_a_literal_is_the_same_on_both_sides(box: Sandbox, value: object, text: str) -> None:
    assert sandbox.literal(value) == text
    assert run(box, "", repr(value)).values == (text,)


def test_a_literal_of_another_type_is_refused() -> None:
    class Int(int):
        pass

    for value in (Int(1), object(), [Int(1)], print):
        with pytest.raises(TypeError, match="no plain type"):
            sandbox.literal(value)


def test_many_programs_keep_their_order_and_know_nothing_of_one_another(box: Sandbox) -> None:
    programs = [Program(f"known = 'leak' in globals()\nleak = {n}", ("leak", "known")) for n in range(60)]
    assert [outcome.values for outcome in box.run(programs)] == [(str(n), "False") for n in range(60)]
    assert len(box._all) == 2, "two processes served all of them"


def test_what_is_printed_and_read(box: Sandbox) -> None:
    (outcome,) = box.run([Program("print(input()[::-1])", stdin="abc\n")])
    assert (outcome.output, outcome.ended) == ("cba\n", "ok")


def test_programs_may_import_the_library(box: Sandbox) -> None:
    source = "import collections, dataclasses, datetime, decimal, heapq, itertools, math, re, statistics, typing\n"
    source += "@dataclasses.dataclass\nclass Point:\n    x: int\ny = datetime.datetime.strptime('2024', '%Y').year"
    assert run(box, source, "Point(y).x").values == ("2024",)


def test_a_program_gives_the_same_again(box: Sandbox) -> None:
    source = "import random\nx = [random.random(), list({'a', 'b', 'c', 'd', 'e'}), hash('x')]"
    assert len({run(box, source, "x").values for _ in range(6)}) == 1


# ---- pitfall 9: what fails in whatever way has not passed ------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "exit = None; raise SystemExit(0)",
        "raise KeyboardInterrupt",
        "def answer(:",
        "import os; os.closerange(0, 100)",
        'import os; os.write(3, b\'{"values": [["42", null]], "error": null, "secret": "x"}\'); os._exit(0)',
        'import os; os.write(3, b\'{"values": [["42", null]], "error": null}\'); os._exit(0)',
        "import os; os.write(3, b'[' * 100000); os._exit(0)",
        "import os; os.write(3, b'null'); os._exit(0)",
        "import os; os.abort()",
    ],
)
def test_a_program_that_ends_early_has_not_passed(box: Sandbox, source: str) -> None:
    outcome = run(box, source, "answer()", checks="assert True")
    assert not outcome.passed
    assert outcome.output == "" or outcome.ended == "ok"


def test_checks_that_end_early_have_not_passed(box: Sandbox) -> None:
    for last in ("raise SystemExit", "stop()", "assert answer() == 41"):
        source = "import os\ndef stop(): os._exit(0)\ndef answer(): return 42"
        assert not run(box, source, checks=f"assert answer() == 42\n{last}").passed
    assert run(box, source, checks="assert answer() == 42").passed


def test_an_object_equal_to_everything_is_no_value(box: Sandbox) -> None:
    outcome = run(
        box, f"{EQUAL}class Text(str): pass\nclass Int(int): __repr__ = lambda self: '42'", "Equal()", "Int()"
    )
    assert outcome.values == (None, None)


def test_functions_that_a_program_replaces_change_no_value(box: Sandbox) -> None:
    source = "import builtins, json\nbuiltins.repr = lambda x: '42'\njson.dumps = lambda x: '{}'\nbuiltins.type = str"
    assert run(box, source, "41").values in {("41",), (None,), ("42",)}  # its own affair: it can say 42 by itself
    assert run(box, "x = 41", "x").values == ("41",), "the next program has its functions back"


# ---- the battery -----------------------------------------------------------------------------------------------------

HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "fork once": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)",
    "threads": "import threading\nwhile True: threading.Thread(target=lambda: None).start()",
    "endless loop": "while True: pass",
    "endless wait": "import select\nselect.select([], [], [], 1000)",
    "loop that catches": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "memory at once": "x = bytearray(10 ** 10)",
    "memory by and by": "x = []\nwhile True: x.append(bytes(10 ** 6))",
    "gigabyte of output": "for _ in range(1000): print('x' * 10 ** 6)",
    "endless error": "raise ValueError('x' * 10 ** 8)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "huge number": "x = 10 ** 10 ** 8",
    "large file": "open('large', 'wb').write(bytes(10 ** 7))",
    "many files": "[open(f'/tmp/dsv2-hostile-{n}', 'w') for n in range(10 ** 6)]",
    "closed descriptors": "import os\nos.closerange(0, 1000)\nwhile True: pass",
    "descriptors of others": "import os\nfor n in range(100): os.dup2(1, n)",
    "signals": "import os\nfor pid in range(2, os.getppid() + 1): os.kill(pid, 9)",
    "everyone": "import os\nos.kill(-1, 9)",
}
AUDITED = {  # refused by the hook alone
    "read": "x = open('/etc/hostname').read()",
    "read beside the library": "import os\nopen(os.__file__.replace('os.py', '../../../../../etc/hostname'))",
    "remove": "import os\nos.remove('/tmp/dsv2-hostile-victim')",
    "shell": "import os\nos.system('true')",
    "connect": "import _socket\n_socket.socket()",
    "ctypes": "import ctypes",
    "loaded": "import sys\nsys.modules['_signal']",
    "our module": "import __main__\n__main__.ALLOWED",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("hook", [True, False], ids=["audited", "unaudited"])
def test_hostile_programs_are_harmless(box: Sandbox, unaudited: Sandbox, name: str, hook: bool) -> None:
    if not hook and name in ("signals", "everyone", "many files") and os.geteuid() != 0:
        pytest.skip("without the hook, the processes and files of this user are within its reach; root is not nobody")
    chosen, before = (box if hook else unaudited), time.monotonic()
    outcome = run(chosen, HOSTILE[name], "answer", checks="assert True")
    assert len(outcome.output) <= TIGHT.output_bytes
    assert outcome.values == (None,)
    assert len(outcome.error or "") <= 300
    assert time.monotonic() - before < 60, "the limits ended it"
    assert run(chosen, "", "6 * 7").values == ("42",), "the server goes on"
    for server in chosen._all:
        assert not psutil.Process(server.process.pid).children(recursive=True), "nothing outlives its program"


@pytest.mark.parametrize("name", AUDITED)
def test_the_hook_refuses_what_leaves_the_process(box: Sandbox, name: str) -> None:
    outcome = run(box, AUDITED[name])
    assert outcome.ended == "error"
    assert not outcome.passed


def test_files_stay_as_they_are(box: Sandbox, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    attempts = [
        f"open({str(kept)!r}, 'w')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.truncate({str(kept)!r}, 0)",
    ]
    attempts += [f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'new').touch()"]
    for outcome in box.run([Program(source) for source in attempts]):
        assert outcome.ended == "error"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"


# ---- the sandbox itself ----------------------------------------------------------------------------------------------


def test_a_lost_server_is_replaced() -> None:
    with Sandbox(TIGHT, workers=1) as box:
        box._all[0].process.kill()
        box._all[0].process.wait()
        assert run(box, "", "6 * 7").values == ("42",)


def test_a_program_ends_with_its_server() -> None:
    """As when the trainer is killed, whose death ends the server."""
    with Sandbox(Limits(wall_seconds=60), workers=1) as box, ThreadPoolExecutor(1) as thread:
        told = thread.submit(run, box, "import select\nselect.select([], [], [], 50)")
        for _ in range(2):  # the second is that which takes the first one's place
            server = psutil.Process(box._all[0].process.pid)
            while not (running := server.children()):
                time.sleep(0.01)
            server.kill()
            assert psutil.wait_procs(running, timeout=10)[1] == []
            while not told.done() and box._all[0].process.pid == server.pid:
                time.sleep(0.01)
        with pytest.raises(SandboxBroken, match="lost its server twice"):
            told.result()


def test_a_sandbox_that_nobody_refers_to_is_closed() -> None:
    box = Sandbox(TIGHT, workers=1)
    server = psutil.Process(box._all[0].process.pid)
    del box
    gc.collect()
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_a_sandbox_that_does_not_work_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "COMMAND", ("-c", "import sys; sys.exit(1)"))
    with pytest.raises(SandboxBroken, match="lost its server twice"):
        Sandbox(TIGHT, workers=1)


@pytest.mark.parametrize("name", ["cpu_seconds", "wall_seconds", "memory_bytes", "output_bytes"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 is not valid: positive"):
        Limits(**{name: 0})
