"""The tour in a real JupyterLab and a real browser: it runs through, its progress moves and its slider draws."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest
from playwright.sync_api import Page

from tests.references.browser import chromium

pytestmark = pytest.mark.slow
TOUR = Path(__file__).parents[2] / "notebooks" / "00_tour.ipynb"
TOKEN = "only-for-this-test"
QUICK = ["model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.tokens=2560"]
WIDTH = "document.querySelector('.widget-hprogress .progress-bar')?.style.width"
SETTINGS = {  # every cell in the page however long it is, and no questions
    "notebook-extension/tracker": {"windowingMode": "none"},
    "docmanager-extension/plugin": {"autosaveInterval": 3600},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@pytest.fixture
def lab(tmp_path: Path, quick: list[str]) -> Iterator[str]:
    """The address of the tour in a JupyterLab with settings, kernels and runs of its own."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    shutil.copy(TOUR, notebooks)
    for name, values in SETTINGS.items():
        path = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    own = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
    own |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime"}
    path = os.pathsep.join([str(TOUR.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {name: str(tmp_path / folder) for name, folder in own.items()}
    environment |= {"PYTHONPATH": path, "DSV2_QUICK": " ".join([*quick, *QUICK])}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.token={TOKEN}", "--ServerApp.port_retries=0", str(notebooks)]
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for_server(server, address, tmp_path / "lab.log")
        yield f"{address}/lab/tree/{TOUR.name}?token={TOKEN}&reset"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for_server(server: subprocess.Popen, address: str, log: Path) -> None:
    until = time.monotonic() + 90
    while True:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        try:
            with urlopen(f"{address}/api?token={TOKEN}", timeout=5):
                return
        except URLError:
            time.sleep(0.2)


def test_the_tour(lab: str, tmp_path: Path) -> None:
    with chromium(width=1280, height=1600) as tab:
        try:
            _tour(tab.page, lab, tmp_path)
        finally:
            tab.page.screenshot(path=tmp_path / "end.png")
        assert tab.outside() == []


def _tour(page: Page, lab: str, folder: Path) -> None:
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    page.goto(lab)
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=120_000)  # before, Run asks which kernel to select
    idle.wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    widths = _progress(page, folder)
    assert len(widths) >= 3, widths
    assert widths == sorted(widths), widths
    idle.wait_for(timeout=400_000)
    _slide(page, folder)
    page.keyboard.press("Control+s")
    _check_saved(folder / "notebooks" / TOUR.name)


def _progress(page: Page, folder: Path) -> list[float]:
    """The widths of the bar, in percent, that were seen until the study ended."""
    bar = page.locator(".widget-hprogress .progress-bar")
    bar.wait_for(state="attached", timeout=60_000)
    bar.scroll_into_view_if_needed()
    found: list[float] = []
    while (style := page.evaluate(WIDTH)) is not None:  # gone: the curves as they are in the end took its place
        width = float(style.removesuffix("%") or 0)
        if width not in found:
            found.append(width)
            page.screenshot(path=folder / "running.png")
        page.wait_for_timeout(100)
    return found


DRAWN = """async () => {
    const picture = await fetch([...document.querySelectorAll('img.widget-image')].at(-1).src);
    return [...new Uint8Array(await picture.arrayBuffer())];
}"""


def _slide(page: Page, folder: Path) -> None:
    """Move the slider to its last step, and back, and compare what is drawn."""
    picture = page.locator("img.widget-image").last
    picture.scroll_into_view_if_needed()
    picture.screenshot(path=folder / "first_step.png")
    first = page.evaluate(DRAWN)
    source = picture.get_attribute("src")
    for key, name in (("End", "last_step"), ("Home", "again")):
        page.locator(".widget-hslider .noUi-handle").focus()
        page.keyboard.press(key)
        page.wait_for_function(
            "old => [...document.querySelectorAll('img.widget-image')].at(-1).src != old", arg=source
        )
        source = picture.get_attribute("src")
        picture.screenshot(path=folder / f"{name}.png")
        assert (page.evaluate(DRAWN) == first) == (key == "Home")


def _check_saved(path: Path) -> None:
    """Every cell of the notebook ran, and none put out an error or a warning."""
    until = time.monotonic() + 30
    while True:
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if all(cell.execution_count for cell in code):
            break
        assert time.monotonic() < until, [cell.source for cell in code if not cell.execution_count]
        time.sleep(0.2)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
