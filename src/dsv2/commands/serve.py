"""`python -m dsv2 serve RUN`: serve a run to OpenAI clients on 127.0.0.1, for this machine only."""

import errno
import socket
from pathlib import Path

import uvicorn

from dsv2.commands.deployment import tell_of_cache
from dsv2.config import ConfigError
from dsv2.inference.deployed import Deployed
from dsv2.inference.server.app import build
from dsv2.inference.server.worker import Worker
from dsv2.kernels.choice import using
from dsv2.training.saved import open_run

ADDRESS = "127.0.0.1"
GRACE = 3  # seconds that connections have to end after Ctrl-C


def serve(
    run: str | Path,
    *,
    port: int,
    num_rows: int,
    max_waiting: int,
    context: int | None,
    deployment: Deployed.Config,
    device: str,
) -> None:
    """Serve until Ctrl-C, which raises KeyboardInterrupt; the base URL is the last line on stdout.

    Raises ValueError for a run without weights or tokenizer, a `device` that is not there, and a `port` in use; 0 takes
    any that is free.
    """
    for name, value, least in (("rows", num_rows, 1), ("waiting", max_waiting, 0), ("context", context, 2)):
        if value is not None and value < least:
            raise ConfigError(name, value, f"{least} or more")
    if not 0 <= port < 1 << 16:
        raise ValueError(f"port={port}: must be between 0 and 65535")
    opened = open_run(run, device=device, deployment=deployment)
    tell_of_cache(opened.model_config, deployment)
    with _listen(port) as listening, using("auto"):
        app = build(opened.reader, opened.name, num_rows=num_rows, max_waiting=max_waiting, context=context)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
        server = _Server(config)
        server.worker = app.state.worker
        print(f"model: {opened.name}", "Press Ctrl-C to stop.", sep="\n")
        print(f"http://{ADDRESS}:{listening.getsockname()[1]}/v1", flush=True)
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends the answers that are under way when it is told to stop, instead of waiting for them."""

    worker: Worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.worker.stop()
        await super().shutdown(sockets)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ValueError(f"port={port}: in use by another process; choose another, or 0 for any free one") from None
