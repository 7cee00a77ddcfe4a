"""The live view of a study, and a real kernel that runs it, is interrupted, restarted and comes back."""

import json
import os
import queue
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_client.manager import start_new_kernel

from ablations import study
from ablations.running import worker as trial
from ablations.running.attach import RECORD, find
from ablations.running.live import Unwatched, View

PAIR = Path(__file__).with_name("pair.yaml")


@pytest.fixture
def pair(quick):
    return study(str(PAIR), seeds=[0], overrides=[*quick, "trainer.tokens=12800"])


def write(one, steps: int) -> None:
    one.folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": n, "tokens": 128 * n, "train/ce": 6 - 0.1 * n, "routing/max_violation": 1.0} for n in range(steps)]
    (one.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_view_shows_what_the_files_say(pair):
    first, second = pair.trials
    stopped = []
    view = View(pair, SimpleNamespace(since=time.time() - 60, stop=lambda: stopped.append(True)))
    view.look()
    assert (view.bar.value, view.text.value) == (0.0, "0 of 2 trials finished, 0% of 0.0M tokens")
    assert view.image.value == b""
    assert view.still().data == ""
    write(first, 26)
    view.look()
    assert view.bar.value == pytest.approx(25 / 200)
    drawn = view.image.value
    assert bytes(drawn).startswith(b"\x89PNG")
    write(first, 27)
    view.look()
    assert view.image.value == drawn  # not again so soon
    view.look(last=True)
    assert view.image.value != drawn
    (second.folder).mkdir()
    (second.folder / "result.json").write_text(json.dumps({"status": "failed", "error": "ValueError: no luck"}))
    view.look()
    assert view.errors.value == "expert-s0 failed: ValueError: no luck"
    assert view.closing(False).splitlines()[:2] == ["0 of 2 trials finished, 1 failed", view.errors.value]
    view.stop.click()
    assert stopped == [True]
    assert view.stop.disabled


def test_an_interrupt_is_one_line():
    assert Unwatched("goes on")._render_traceback_() == ["goes on"]
    assert issubclass(Unwatched, KeyboardInterrupt)


class Kernel:
    """A kernel, and what its cells put out."""

    def __init__(self, quick: list[str]) -> None:
        path = os.pathsep.join([str(Path(trial.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        self.manager, self.client = start_new_kernel(env=os.environ | {"PYTHONPATH": path})
        self.first = f"from ablations import study; pair = study({str(PAIR)!r}, seeds=[0], overrides={quick!r})"

    def start(self, code: str) -> str:
        return self.client.execute(code)

    def outputs(self, message: str, seconds: float = 200) -> list[dict]:
        """Everything that a cell puts out until it ends."""
        found, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                said = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            if said["parent_header"].get("msg_id") != message:
                continue
            found.append(said)
            if said["msg_type"] == "status" and said["content"]["execution_state"] == "idle":
                return found
        raise AssertionError(f"no end after {seconds} s: {found}")

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(quick):
    kernel = Kernel([*quick, "trainer.tokens=12800"])
    yield kernel
    kernel.end()


def wait_for(condition, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def text(outputs: list[dict], kind: str, key: str) -> str:
    return "".join(one["content"][key] for one in outputs if one["msg_type"] == kind)


@pytest.mark.slow
def test_a_study_outlives_its_kernel(kernel, pair):
    kernel.start(kernel.first)
    cell = kernel.start("pair.run(workers=1)")
    wait_for(lambda: list(pair.folder.glob("trials/*/metrics.jsonl")))
    runner = find(pair.folder)
    kernel.manager.interrupt_kernel()
    said = kernel.outputs(cell)
    assert text(said, "error", "ename") == "Unwatched"
    assert f"the study goes on in process {runner.pid}" in text(said, "error", "evalue").lower()
    assert [one["content"]["traceback"] for one in said if one["msg_type"] == "error"] == [
        [text(said, "error", "evalue")]
    ]
    assert runner.alive()
    kernel.manager.restart_kernel(now=False)
    kernel.client.wait_for_ready(timeout=60)
    assert runner.alive()
    kernel.start(kernel.first)
    cell = kernel.start("assert pair.run() is True")
    said = kernel.outputs(cell)
    assert text(said, "error", "evalue") == ""
    assert json.loads((pair.folder / RECORD).read_text())["pid"] == runner.pid
    assert "2 of 2 trials finished\nreport: " in text(said, "stream", "text")
    shown = [one["content"]["data"] for one in said if one["msg_type"] == "update_display_data"]
    assert "image/png" in shown[-1]
    assert not runner.alive()
