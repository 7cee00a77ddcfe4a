"""The live view of a study, and a real kernel that runs it, is interrupted, restarted and comes back."""

import html
import json
import os
import queue
import re
import time
from pathlib import Path
from types import SimpleNamespace

import ipywidgets as widgets
import pytest
from jupyter_client.manager import start_new_kernel

import ablations
from ablations.running import live
from ablations.running.attach import RECORD, find
from ablations.running.live import Unwatched, View, watched
from tests.references.processes import wait_for

ROOT = Path(ablations.__file__).parents[1]


@pytest.fixture
def long(pair):
    """A study of two trials of 100 steps."""
    return pair("trainer.tokens=12800")


def write(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": n, "tokens": 128 * n, "train/ce": 6 - 0.1 * n, "routing/max_violation": 1.0} for n in range(steps)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_view_shows_what_the_files_say(long):
    first, second = long.trials
    stopped, state = [], [""]
    view = View(
        long, SimpleNamespace(since=time.time() - 60, waits=lambda: state[0], stop=lambda: stopped.append(True))
    )
    view.look()
    assert (view.bar.value, view.text.value) == (0.0, "0 of 2 trials finished, 0% of 0.0M tokens")
    assert view.image.value == b""
    assert view.still().data == ""
    write(first.folder, 26)
    view.look()
    assert view.bar.value == pytest.approx(25 / 200)
    drawn = view.image.value
    assert bytes(drawn).startswith(b"\x89PNG")
    write(first.folder, 27)
    view.look()
    assert view.image.value == drawn  # not again so soon
    view.look(last=True)
    assert view.image.value != drawn
    (second.folder).mkdir()
    (second.folder / "result.json").write_text(json.dumps({"status": "failed", "error": "ValueError: no luck"}))
    view.look()
    assert view.errors.value == "expert-s0 failed: ValueError: no luck"
    assert view.closing(False).splitlines()[:2] == ["0 of 2 trials finished, 1 failed", view.errors.value]
    state[0] = "process 12 is stopped"
    view.look()
    assert view.text.value == "process 12 is stopped"
    view.stop.click()
    assert stopped == [True]
    assert view.stop.disabled


def test_arms_stand_beside_the_baseline_once_both_have_begun(long):
    first, second = long.trials
    curves = live.Curves(long.trials, (live.LOSS, live.IMBALANCE))
    write(first.folder, 5)
    curves.look()
    assert len(live.draw(curves, list(long.arms), "none").axes) == 2
    write(second.folder, 3)
    curves.look()
    loss, difference, imbalance = live.draw(curves, list(long.arms), "none").axes
    assert difference.get_ylabel() == "training cross-entropy,\narm - none"
    assert (loss.get_legend(), difference.get_legend(), imbalance.get_legend()) == (None, None, None)


def test_errors_are_text(long):
    view = View(long, SimpleNamespace(since=time.time() - 60, waits=lambda: ""))
    error = "ValueError: <b>cost</b> $7$ & more"
    long.trials[0].folder.mkdir(parents=True)
    (long.trials[0].folder / "result.json").write_text(json.dumps({"status": "failed", "error": error}))
    view.look()
    assert view.errors.value == f"none-s0 failed: {html.escape(error)}"
    assert not isinstance(view.errors, widgets.Label | widgets.HTMLMath)  # which typeset mathematics


def test_an_interrupt_is_one_line():
    assert Unwatched("goes on")._render_traceback_() == ["goes on"]
    assert issubclass(Unwatched, KeyboardInterrupt)


class Kernel:
    """A kernel, and what its cells put out."""

    def __init__(self, first: str) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.manager, self.client = start_new_kernel(env=os.environ | {"PYTHONPATH": path})
        self.first = first

    def start(self, code: str) -> str:
        return self.client.execute(code)

    def outputs(self, message: str, seconds: float = 200) -> list[dict]:
        """Everything that a cell puts out until it ends."""
        outputs, until = [], time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                output = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            if output["parent_header"].get("msg_id") != message:
                continue
            outputs.append(output)
            if output["msg_type"] == "status" and output["content"]["execution_state"] == "idle":
                return outputs
        raise AssertionError(f"no end after {seconds} s: {outputs}")

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(long):
    arguments = f"{long.source!r}, seeds=[0], overrides={list(long.overrides)!r}"
    kernel = Kernel(f"from ablations import study; pair = study({arguments})")
    yield kernel
    kernel.end()


def text(outputs: list[dict], kind: str, key: str) -> str:
    return "".join(output["content"][key] for output in outputs if output["msg_type"] == kind)


@pytest.mark.slow
def test_a_study_outlives_its_kernel(kernel, long):
    kernel.start(kernel.first)
    cell = kernel.start("pair.run(workers=1)")
    wait_for(lambda: list(long.folder.glob("trials/*/metrics.jsonl")))
    runner = find(long.folder)
    kernel.manager.interrupt_kernel()
    said = kernel.outputs(cell)
    assert text(said, "error", "ename") == "Unwatched"
    assert f"the study goes on in process {runner.pid}" in text(said, "error", "evalue").lower()
    assert [output["content"]["traceback"] for output in said if output["msg_type"] == "error"] == [
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
    assert json.loads((long.folder / RECORD).read_text())["pid"] == runner.pid
    assert "2 of 2 trials finished\nreport: " in text(said, "stream", "text")
    shown = [output["content"]["data"] for output in said if output["msg_type"] == "update_display_data"]
    assert "image/png" in shown[-1]
    assert not runner.alive()


@pytest.mark.slow
def test_the_stop_button_stops_a_study_while_its_cell_runs(kernel, long):
    """It is clicked as a browser does: by a message to the kernel, which is busy with the cell."""
    kernel.start(kernel.first)
    cell = kernel.start("assert pair.run(workers=1) is False")
    said, stop = [], None
    while stop is None:
        said.append(kernel.client.get_iopub_msg(timeout=60))
        if said[-1]["msg_type"] == "comm_open":
            state = said[-1]["content"]["data"].get("state", {})
            stop = said[-1]["content"]["comm_id"] if state.get("description") == "Stop" else None
    wait_for(lambda: list(long.folder.glob("trials/*/metrics.jsonl")))
    runner = find(long.folder)
    content = {"comm_id": stop, "data": {"method": "custom", "content": {"event": "click"}}}
    kernel.client.shell_channel.send(kernel.client.session.msg("comm_msg", content))
    wait_for(lambda: not runner.alive())
    outputs = kernel.outputs(cell)
    assert text(outputs, "error", "evalue") == ""
    assert text(outputs, "stream", "text").endswith("stopped; progress is saved, run the cell again to resume\n")
    assert not re.search("[\u2800-\u28ff\x1b]", runner.log.read_text())  # neither spinners nor colours
    cell = kernel.start("print('the kernel goes on')")
    assert text(kernel.outputs(cell), "stream", "text") == "the kernel goes on\n"


def test_a_study_of_policies_shows_their_answers():
    assert watched(ablations.study("grpo_online_offline")) == ("train/ce", "grpo/reward", "grpo/kl", "grpo/length")
    assert watched(ablations.study("balance_losses")) == ("train/ce", "routing/max_violation")
