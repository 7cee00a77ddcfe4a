"""The browser that other tests use: what it remembers, and what it says where there is none."""

import http.server
import threading

import pytest

from tests.references.browser import chromium

PAGE = b"""<!doctype html><link rel="icon" href="data:,"><title>here</title>
<script>console.error('told'); setTimeout(() => { throw Error('thrown') }, 0)</script>
<img src="http://elsewhere.invalid/x.png">"""


@pytest.fixture
def address():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.slow
def test_errors_and_requests_are_remembered(address):
    with chromium() as tab:
        tab.page.goto(address)
        tab.page.wait_for_timeout(200)
        assert tab.page.title() == "here"
        assert tab.outside() == ["http://elsewhere.invalid/x.png"]
        for part in ("told", "thrown", "http://elsewhere.invalid/x.png"):
            assert any(part in error for error in tab.errors), part


def test_without_a_browser_the_test_fails_or_skips_if_told_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DSV2_NO_BROWSER", raising=False)
    with pytest.raises(pytest.fail.Exception, match="no browser: install one of chromium"), chromium():
        pass
    monkeypatch.setenv("DSV2_NO_BROWSER", "1")
    with pytest.raises(pytest.skip.Exception, match="DSV2_NO_BROWSER=1"), chromium():
        pass
