"""Waiting for other processes, and doing without them."""

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


def wait_for(condition: Callable[[], object], seconds: float = 90) -> None:
    """Return once `condition` holds. AssertionError after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


class Here(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
