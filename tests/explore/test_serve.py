"""The page in a browser, as it is served: what it shows, what it asks for, who may reach it, and how it ends."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsv2.__main__ import main
from tests.references.browser import Tab, chromium

REPORT = '<h1>The whole of toy</h1><script>parent.document.title = "taken over"</script>'


@contextmanager
def served(*arguments: object) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address that the command prints last, and its process; the environment tries to let others in."""
    command = [sys.executable, "-m", "dsv2", "explore", *map(str, arguments), "--no-browser"]
    lax = {"BOKEH_ALLOW_WS_ORIGIN": "evil.example", "BOKEH_RESOURCES": "cdn", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | lax)
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", lines[-1]), (lines, process.poll())
        yield lines[-1].strip(), process
    finally:
        process.kill()
        process.communicate()


def labels(tab: Tab, side: int = 0) -> list[str]:
    """What stands under the tokens of A or B."""
    return tab.page.locator(".text").nth(side).locator(".token i").all_inner_texts()


def painted(tab: Tab, legend: str) -> None:
    tab.page.get_by_text(legend).wait_for()


@pytest.fixture
def study(runs: Path) -> None:
    folder = runs / "toy" / "smoke" / "report"
    folder.mkdir(parents=True)
    (folder / "report.md").write_text("# toy\n\n**The one arm is better.**\n")
    (folder / "table.csv").write_text("arm,n,val/loss mean,val/loss sd\nthe one arm,2,5.1234,0.02\n")
    (folder / "report.html").write_text(REPORT)


@pytest.mark.slow
def test_the_page_follows_its_widgets_and_asks_nobody_else(run, study):
    with served(run) as (url, _), chromium() as tab:
        page = tab.page
        page.goto(url)
        page.locator(".token").first.wait_for()
        before = labels(tab)

        page.get_by_label("Text").fill("Mad mod 学.\nBar <i>")
        page.get_by_role("button", name="Trace").click()
        page.locator(".token", has_text="学").wait_for()
        first_layer = labels(tab)
        assert first_layer != before
        assert all(int(label) in range(8) for label in first_layer)
        shown = "".join(page.locator(".token b").all_inner_texts())
        assert shown.replace("…", "") == "Mad mod 学.↵Bar <i>"
        hint = page.locator(".token").nth(1).get_attribute("title")
        assert re.search(r"loss \d+\.\d\d nats\nexpert \d on device \d, gate 0\.\d{3}", hint)

        page.get_by_role("button", name="2", exact=True).click()
        page.get_by_role("button", name="dropped").click()
        painted(tab, "The number of the token's pairs")
        total = sum(int(label or 0) for label in labels(tab))
        heading = page.get_by_text(re.compile(r"pairs \(")).inner_text()
        assert f"{total} of " in heading
        page.locator(".noUi-handle").press("End")  # a capacity factor of 4 on 4 devices has room for all
        page.get_by_text(re.compile(r"; 0 of \d+ pairs")).wait_for()
        assert set(labels(tab)) == {""}

        page.get_by_label("Compare with B").select_option("one, step 8")
        page.get_by_text("Agreement of A and B").wait_for()
        page.get_by_text("same top expert").wait_for()
        assert page.get_by_role("heading", name="B: one, step 8").is_visible()
        page.get_by_role("button", name="loss difference").click()
        painted(tab, "B's loss minus A's")
        assert labels(tab, 1)[1:] != labels(tab, 0)[1:]

        page.get_by_label("Text").fill("bad " * 50)
        page.get_by_role("button", name="Trace").click()
        page.get_by_text("at most 32 tokens").wait_for()
        assert not page.locator(".token").first.is_visible()
        page.get_by_label("Text").fill("")
        page.get_by_role("button", name="Trace").click()
        page.get_by_text("the text is empty").wait_for()

        page.get_by_text("Studies").click()
        page.get_by_text("The one arm is better.").wait_for()
        assert page.get_by_text("5.123 ± 0.020").is_visible()
        assert page.get_by_label("Study").input_value() == "toy (smoke)"
        page.frame_locator("iframe").get_by_text("The whole of toy").wait_for()
        assert page.title() == "dsv2 explore"
        # Chromium reports a script that the frame's sandbox has stopped; it is the only error there is.
        assert [error for error in tab.errors if "sandboxed" not in error] == []
        assert tab.outside() == []
        assert any(request.startswith("ws://127.0.0.1") for request in tab.requests)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800])
def test_two_runs_fit_the_window(run, other, width):
    with served(run, other) as (url, _), chromium(width=width) as tab:
        tab.page.goto(url)
        tab.page.get_by_role("heading", name="B: other, step 12").wait_for()
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        tab.page.get_by_text("similarity of groups").wait_for()
        assert not tab.page.get_by_text("same top expert").is_visible()  # numbers mean nothing between two runs
        assert tab.errors == tab.outside() == []


def test_requests_that_make_no_sense(run, capsys):
    assert main(["explore", str(run), str(run), str(run)]) == 2
    assert "one run, or two to compare" in capsys.readouterr().err
    assert main(["explore", str(run), "--port", "70000"]) == 2
    assert "port=70000: must be between 1 and 65535" in capsys.readouterr().err


@pytest.mark.slow
def test_only_this_machine_is_let_in_and_ctrl_c_ends_it(run, capsys):
    with served(run) as (url, process):
        port = int(url.rstrip("/").rpartition(":")[2])
        handshake = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Origin": "http://evil.example",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/ws", headers=handshake)
        assert connection.getresponse().status == 403
        connection.close()
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        bound = [line.split()[1] for line in listening.splitlines() if line.split()[3] == "0A"]
        assert [address for address in bound if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]

        assert main(["explore", str(run), "--port", str(port), "--no-browser"]) == 2
        assert f"port={port}: in use by another process" in capsys.readouterr().err
        with served(run) as (second, _):
            assert second != url

        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, "")
        assert "Traceback" not in err
    with socket.socket() as free:
        free.bind(("127.0.0.1", port))
