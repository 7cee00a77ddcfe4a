"""`python -m dsv2 explore RUN [RUN2]`: serve the page on 127.0.0.1, for this machine only."""

import asyncio
import errno
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import panel as pn
from bokeh.settings import settings
from tornado.websocket import WebSocketClosedError

from dsv2.explore.page import build
from dsv2.explore.subject import Subject, open_subject
from dsv2.training.saved import open_run

ADDRESS = "127.0.0.1"
FIRST_PORT, TRIES = 5006, 50  # ports tried if none is given


def serve(runs: Sequence[str | Path], *, port: int | None = None, browser: bool = True) -> None:
    """Serve the page until Ctrl-C, which raises KeyboardInterrupt; the URL is the last line on stdout.

    Raises ValueError for a run that cannot be explored and for a `port` in use.
    """
    if port is not None and not 0 < port < 1 << 16:
        raise ValueError(f"port={port}: must be between 1 and 65535")
    subjects = [open_subject(open_run(run)) for run in runs]
    ports = [port] if port is not None else range(FIRST_PORT, FIRST_PORT + TRIES)
    server = next(filter(None, (_listen(subjects, candidate) for candidate in ports)), None)
    if server is None:
        raise ValueError(
            f"port={port}: in use by another process; choose another, or none for the first free one"
            if port is not None
            else f"port: {ports[0]} to {ports[-1]} are all in use; choose one with --port"
        )
    url = f"http://{ADDRESS}:{server.port}/"
    server.start()
    asyncio.get_event_loop().set_exception_handler(_on_error)
    if browser:
        server.io_loop.add_callback(webbrowser.open, url)
    print("Press Ctrl-C to stop.", url, sep="\n", flush=True)
    server.io_loop.start()  # Panel's handler of SIGINT stops it
    server.stop()
    raise KeyboardInterrupt


def _on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle errors by default, except for visitors who leave while data are being sent."""
    if not isinstance(context.get("exception"), WebSocketClosedError):
        loop.default_exception_handler(context)


def _listen(subjects: list[Subject], port: int) -> pn.io.server.Server | None:
    """Create a server on the port, or return None if it is in use. Other origins are refused web sockets."""
    origins = [f"{host}:{port}" for host in (ADDRESS, "localhost")]
    settings.allowed_ws_origin = origins  # else BOKEH_ALLOW_WS_ORIGIN would replace them
    settings.resources = "server"  # else BOKEH_RESOURCES could name a CDN

    def page() -> pn.Column:  # a function, so that Panel builds a new page for each visitor
        return build(subjects)

    try:
        return pn.io.server.get_server(
            {"/": page}, port=port, address=ADDRESS, websocket_origin=origins, title="dsv2 explore", start=False
        )
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return None
