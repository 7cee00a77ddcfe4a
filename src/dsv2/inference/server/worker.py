"""The engine in a thread of its own, for callers in an event loop."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Sequence
from queue import SimpleQueue
from typing import Any

from dsv2.inference.engine.engine import Engine
from dsv2.inference.engine.request import Generation, Request, Update


class Stopped(Exception):
    """The engine has been stopped, or has failed; the message says which."""


class Ticket:
    """Requests that were taken together, and what comes of them, in order."""

    def __init__(self, generations: Sequence[Generation], left: int) -> None:
        """Take the generations, of which `left` had not ended when they were taken."""
        self.generations, self.left = generations, left
        self.updates: asyncio.Queue[Update | Exception] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Update]:
        """Yield updates until all have ended. Raises Stopped if the engine did."""
        while self.left:
            update = await self.updates.get()
            if isinstance(update, Exception):
                raise update
            self.left -= update.finish is not None
            yield update


class Worker:
    """Runs an engine in a thread, from `start` to `stop`; everything else is called from one event loop."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inbox: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()
        self.tickets: dict[Generation, Ticket] = {}  # of all that have not ended
        # A copy, so that the choice of kernels where the worker was made holds in its thread
        self.thread = threading.Thread(target=contextvars.copy_context().run, args=(self._work,), daemon=True)

    def start(self) -> None:
        """Start the thread. Called in the event loop that will use it."""
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    async def stop(self) -> None:
        """End all requests and the thread; it waits for the step that is being computed."""
        self.inbox.put(("stop", None, None))
        await asyncio.to_thread(self.thread.join)
        stopped = Stopped("the server is shutting down")
        while not self.inbox.empty():
            if (taken := self.inbox.get()[2]) is not None:
                _settle(taken, None, stopped)
        self._fail(stopped)

    async def submit(self, requests: Sequence[Request]) -> Ticket:
        """Put requests in the engine's queue, all or none. Raises what `Engine.submit` does, or Stopped."""
        taken: asyncio.Future[Ticket] = self.loop.create_future()
        if not self.thread.is_alive():
            raise Stopped("the server is shutting down")
        self.inbox.put(("submit", requests, taken))
        return await taken

    def cancel(self, ticket: Ticket) -> None:
        """End what has not ended of these requests, before the next step."""
        for generation in ticket.generations:
            self.tickets.pop(generation, None)
        self.inbox.put(("cancel", ticket.generations, None))

    # ---- in the thread ----

    def _work(self) -> None:
        engine = self.engine
        while self._obey(wait=not engine.busy):
            if not engine.busy:
                continue
            try:
                updates = engine.step()
            except Exception as error:  # of the model: its requests end, and the next may do better
                for generation in [*engine.waiting, *engine.rows.holders]:
                    engine.cancel(generation)
                self.loop.call_soon_threadsafe(self._fail, Stopped(f"{type(error).__name__}: {error}"))
            else:
                self.loop.call_soon_threadsafe(self._deliver, updates)

    def _obey(self, *, wait: bool) -> bool:
        """Do what is asked for, after waiting for something if told so; return whether to go on."""
        while wait or not self.inbox.empty():
            wait = False
            what, subject, answer = self.inbox.get()
            if what == "stop":
                return False
            if what == "cancel":
                for generation in subject:
                    self.engine.cancel(generation)
            else:
                self._take(subject, answer)
        return True

    def _take(self, requests: Sequence[Request], taken: "asyncio.Future[Ticket]") -> None:
        generations = list[Generation]()
        try:
            for request in requests:
                generations.append(self.engine.submit(request))
        except Exception as error:  # is raised where it was asked for
            for generation in generations:
                self.engine.cancel(generation)
            self.loop.call_soon_threadsafe(_settle, taken, None, error)
        else:
            live = [generation for generation in generations if generation.finish is None]
            self.loop.call_soon_threadsafe(self._hand_out, taken, generations, live)

    # ---- in the event loop, called from the thread ----

    def _hand_out(self, taken: "asyncio.Future[Ticket]", generations: list[Generation], live: list[Generation]) -> None:
        ticket = Ticket(generations, len(live))
        if taken.cancelled():  # who asked has left
            self.cancel(ticket)
        else:
            self.tickets |= dict.fromkeys(live, ticket)
            taken.set_result(ticket)

    def _deliver(self, updates: Sequence[Update]) -> None:
        for update in updates:
            ticket = self.tickets.get(update.generation)
            if ticket is not None:
                ticket.updates.put_nowait(update)
                if update.finish is not None:
                    del self.tickets[update.generation]

    def _fail(self, error: Stopped) -> None:
        for ticket in set(self.tickets.values()):
            ticket.updates.put_nowait(error)
        self.tickets.clear()


def _settle(future: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if not future.cancelled():
        future.set_exception(error) if error is not None else future.set_result(result)
