"""The engine in its thread: all or none are taken, updates come in order, and every wait ends."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dsv2.config import ConfigError
from dsv2.inference.engine.engine import Engine
from dsv2.inference.engine.request import QueueFull, Request
from dsv2.inference.server.worker import Stopped, Worker
from dsv2.kernels import choice
from dsv2.models.transformer import Transformer
from tests.references.generation import alone, prompts_of, small_model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return small_model()


def working(model: Transformer, use: Callable[[Worker], Awaitable[None]], **limits: Any) -> Worker:
    """Use a worker until `use` returns; a wait of more than 30 seconds is a failure."""

    async def run() -> Worker:
        worker = Worker(Engine(model, **{"num_rows": 2, "max_length": 64} | limits))
        worker.start()
        try:
            await asyncio.wait_for(use(worker), 30)
        finally:
            await asyncio.wait_for(worker.stop(), 30)
        return worker

    return asyncio.run(run())


def asked(prompt: list[int], new: int = 5) -> Request:
    return Request(prompt=prompt, max_new_tokens=new)


def test_updates_are_those_of_the_engine_in_order(model: Transformer) -> None:
    """Also of answers that end with the first step, perhaps before their ticket is read, or have nothing to do."""
    requests = [asked(prompt, new) for prompt, new in zip(prompts_of(5, 20, 9, 3), (6, 1, 3, 0), strict=True)]

    async def use(worker: Worker) -> None:
        for _ in range(5):
            ticket = await worker.submit(requests)
            updates = [update async for update in ticket]
            assert len(updates) == 10
            assert sum(update.finish == "length" for update in updates) == 3
            for generation, request in zip(ticket.generations, requests, strict=True):
                assert generation.tokens == (alone(model, request)[0] if request.max_new_tokens else [])

    assert working(model, use).tickets == {}


def test_requests_are_taken_together_or_not_at_all(model: Transformer) -> None:
    good, long = asked(prompts_of(5)[0], 3), asked([1] * 64)

    async def use(worker: Worker) -> None:
        with pytest.raises(ConfigError, match="prompt='64 tokens' is not valid"):
            await worker.submit([good, long])
        with pytest.raises(QueueFull):
            await worker.submit([good] * 4)
        assert not worker.engine.busy
        assert len([update async for update in await worker.submit([good] * 3)]) == 9

    working(model, use, max_waiting=1)


def test_who_stops_waiting_for_a_place_does_not_get_one(model: Transformer) -> None:
    async def use(worker: Worker) -> None:
        submitted = asyncio.ensure_future(worker.submit([asked([1, 2, 3], 50)]))
        await asyncio.sleep(0)
        submitted.cancel()
        ticket = await worker.submit([asked([1, 2, 3], 2)])
        assert len([update async for update in ticket]) == 2
        while worker.engine.busy:
            await asyncio.sleep(0.001)
        assert worker.tickets == {}

    working(model, use)


def test_cancelled_requests_are_gone(model: Transformer) -> None:
    async def use(worker: Worker) -> None:
        ticket = await worker.submit([asked(prompt, 50) for prompt in prompts_of(5, 9, 8)])
        async for _ in ticket:
            break
        worker.cancel(ticket)
        while worker.engine.busy:
            await asyncio.sleep(0.001)
        assert {generation.finish for generation in ticket.generations} == {"cancelled"}
        assert worker.tickets == {}

    working(model, use)


def test_stopping_ends_every_wait(model: Transformer) -> None:
    """Of answers under way and of requests in the queue; nothing is taken afterwards."""
    waits = list[asyncio.Future[Any]]()

    async def drain(worker: Worker) -> None:
        async for _ in await worker.submit([asked(prompt, 55) for prompt in prompts_of(5, 6, 7)]):
            pass

    async def use(worker: Worker) -> None:
        waits.extend(asyncio.ensure_future(drain(worker)) for _ in range(3))
        while not worker.engine.busy:
            await asyncio.sleep(0.001)
        await worker.stop()
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert [str(result) for result in results] == ["the server is shutting down"] * 3
        with pytest.raises(Stopped, match="the server is shutting down"):
            await worker.submit([asked([1])])

    working(model, use)


def test_a_failure_reaches_those_who_wait_and_ends_there(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory is left")

    async def use(worker: Worker) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(model, "hidden", fail)
            with pytest.raises(Stopped, match="RuntimeError: no memory is left"):
                [update async for update in await worker.submit([asked([1, 2]), asked([3])])]
        assert len([update async for update in await worker.submit([asked([1, 2])])]) == 5

    working(model, use)


def test_the_thread_has_the_kernels_of_where_it_was_made(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, hidden = set[str](), model.hidden

    def noting(*arguments: Any, **settings: Any) -> Any:
        seen.add(choice._chosen.get())
        return hidden(*arguments, **settings)

    async def use(worker: Worker) -> None:
        [update async for update in await worker.submit([asked([1, 2])])]

    monkeypatch.setattr(model, "hidden", noting)
    with choice.using("auto"):
        working(model, use)
    assert seen == {"auto"}
