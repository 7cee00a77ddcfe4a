"""A headless browser for tests: `with chromium() as tab:` gives a page that remembers its errors and its requests."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "google-chrome", "chromium-browser", "google-chrome-stable")
FLAGS = [  # no sandbox: containers have none; the rest keeps the browser itself from calling home
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCAL = ("127.0.0.1", "localhost")
PATIENCE = 30_000  # milliseconds for any one wait; machines that run tests are busy


@dataclass
class Tab:
    """A page and what happened on it since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)  # console errors, uncaught exceptions, failed requests
    requests: list[str] = field(default_factory=list)  # addresses of all requests and web sockets

    def outside(self) -> list[str]:
        """Addresses it asked for that are not of this machine; `data:` and `blob:` ask nobody."""
        asked = [(url, urlsplit(url)) for url in self.requests]
        return [url for url, parts in asked if parts.scheme not in ("data", "blob") and parts.hostname not in LOCAL]


@contextmanager
def chromium(*, width: int = 1280, height: int = 900) -> Iterator[Tab]:
    """An empty page of the installed browser. Without one the test fails, or skips where DSV2_NO_BROWSER=1."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        if os.environ.get("DSV2_NO_BROWSER") == "1":
            pytest.skip("DSV2_NO_BROWSER=1: this machine has no browser")
        pytest.fail(f"no browser: install one of {', '.join(NAMES)}, or set DSV2_NO_BROWSER=1 to skip browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(PATIENCE)
            yield _watched(page)
        finally:
            browser.close()


def _watched(page: Page) -> Tab:
    tab = Tab(page)

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            tab.errors.append(f"{message.text} ({message.location.get('url', '')})")

    page.on("console", on_console)
    page.on("pageerror", lambda error: tab.errors.append(str(error)))
    page.on("requestfailed", lambda request: tab.errors.append(f"{request.failure}: {request.url}"))
    page.on("request", lambda request: tab.requests.append(request.url))
    page.on("websocket", lambda socket: tab.requests.append(socket.url))
    return tab
