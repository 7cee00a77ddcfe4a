"""A small model and its reader, and servers of it."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.reader import Reader
from dsv2.inference.server.app import build
from tests.references.generation import small_model


@pytest.fixture(scope="session")
def reader() -> Reader:
    """A model of texts of up to 64 tokens, all of whose ids are tokens."""
    tokenizer = Tokenizer.train(["ban ben lor dist"] * 9, vocab_size=270)
    return Reader(small_model(vocab_size=len(tokenizer.ids)), tokenizer, 64)


@pytest.fixture
def served(reader: Reader) -> Iterator[Callable[..., str]]:
    """A function that starts a server and returns its URL."""
    running = list[tuple[uvicorn.Server, threading.Thread, socket.socket]]()

    def start(reader: Reader = reader, **limits: Any) -> str:
        app = build(reader, "small", **{"num_rows": 3, "max_waiting": 8} | limits)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread, listening))
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for server, _, _ in running:
        server.should_exit = True
    for _, thread, listening in running:
        thread.join(20)
        listening.close()
        assert not thread.is_alive()
