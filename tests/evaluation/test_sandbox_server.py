"""The server's own parts: messages, and the processes that a program leaves behind where it can start any."""

import io
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dsv2.evaluation import sandbox_server
from dsv2.evaluation.sandbox import Limits, asdict
from dsv2.evaluation.sandbox_server import receive, send


def test_messages_arrive_whole_or_not_at_all() -> None:
    stream = io.BytesIO()
    send(stream, {"a": [1, "\n"]})
    send(stream, None)
    data = stream.getvalue()
    stream.seek(0)
    assert receive(stream) == {"a": [1, "\n"]}
    for end in (0, 3, 10):
        assert receive(io.BytesIO(data[:end])) is None


# Holds stdout and the report from a session of its own, until somebody ends it.
DETACHED = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(300)
    os._exit(0)
time.sleep(0.5)
"""
FREE = """
import sys
sys.path.insert(0, sys.argv[1])
import sandbox_server as server
server._limit = lambda limits: None  # so that programs can start processes
prctl = server._prctl()
prctl(server.PR_SET_CHILD_SUBREAPER, 1)
job = {"program": sys.argv[2], "expressions": [], "checks": None, "stdin": "", "secret": ""}
limits = {"wall_seconds": 2.0, "output_bytes": 100}
print(server.supervise(job, limits, audited=False, prctl=prctl))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to an ancestor")
def test_what_a_program_leaves_behind_is_ended_with_it() -> None:
    folder = Path(sandbox_server.__file__).parent
    done = subprocess.run([sys.executable, "-c", FREE, folder, DETACHED], capture_output=True, text=True, timeout=60)
    answer = eval(done.stdout)
    assert answer["ended"] == "time", "the report stayed open"
    assert not psutil.pid_exists(int(answer["output"]))


def test_limits_are_those_that_the_server_reads() -> None:
    assert set(asdict(Limits())) == {"cpu_seconds", "wall_seconds", "memory_bytes", "output_bytes"}
