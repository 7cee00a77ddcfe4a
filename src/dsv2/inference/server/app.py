"""OpenAI's completions endpoint over one model: `python -m dsv2 serve RUN`.

One engine continues the requests of all clients together. Nothing is read from or sent to any other machine.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv2.inference.engine.request import QueueFull, Scored
from dsv2.inference.reader import Reader
from dsv2.inference.server.schema import Completion, choice, logprobs, usage, whole
from dsv2.inference.server.worker import Stopped, Ticket, Worker

MOST_BYTES = 4 << 20  # of a request's body
HOSTS = ["127.0.0.1", "localhost"]  # other names for this machine could be those of web pages that a browser shows
NO_CHAT = "this model has no chat template, so that it can only continue text: use /v1/completions"


def build(reader: Reader, name: str, *, num_rows: int, max_waiting: int, context: int | None = None) -> FastAPI:
    """Return the application that serves a model under a name.

    At most `num_rows` answers are written at a time and `max_waiting` wait; what is beyond gets the status 429. A
    prompt and its answer have at most `context` tokens together (default: `reader.longest`).
    """
    worker = Worker(reader.engine(num_rows=num_rows, max_length=context, max_waiting=max_waiting, prompts_first=False))

    @asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.stop()

    app = FastAPI(title="dsv2", lifespan=working, docs_url=None, redoc_url=None)
    app.state.worker = worker  # for who stops it before the last answer has ended
    app.add_middleware(_Limited)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_status)
    shown = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "dsv2"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [shown]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        _require_model(model, name)
        return shown

    @app.get("/health")
    async def health() -> dict[str, Any]:
        engine = worker.engine
        return {"status": "ok", "running": len(engine.rows.holders), "waiting": len(engine.waiting)}

    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        return _refusal(400, NO_CHAT)

    @app.post("/v1/completions")
    async def completions(body: Completion, request: Request) -> Response:
        _require_model(body.model, name)
        try:
            requests = body.requests(reader)
            if len(requests) > num_rows + max_waiting:
                raise ValueError(f"n={body.n}: {len(requests)} answers, but at most {num_rows + max_waiting} can wait")
            ticket = await worker.submit(requests)
        except QueueFull as error:
            return _refusal(429, str(error))
        except Stopped as error:
            return _refusal(503, str(error))
        except ValueError as error:
            return _refusal(400, str(error))
        answer = _Answer(reader, name, body, ticket)
        if body.stream:
            return StreamingResponse(_until_end(answer.stream(), worker, ticket), media_type="text/event-stream")
        return await _unless_gone(answer, worker, request)

    return app


class _Answer:
    """The answer to one HTTP request, whole or as events."""

    def __init__(self, reader: Reader, name: str, body: Completion, ticket: Ticket) -> None:
        self.tokenizer, self.body, self.ticket = reader.tokenizer, body, ticket
        self.common = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }

    async def whole(self) -> dict[str, Any]:
        """Wait for the end of all choices."""
        async for _ in self.ticket:
            pass
        made = self.ticket.generations
        choices = [whole(self.tokenizer, index, each, self.body) for index, each in enumerate(made)]
        return self.common | {"choices": choices, "usage": usage(made, self.body.n or 1)}

    async def stream(self) -> AsyncIterator[str]:
        """Yield server-sent events: pieces of text, the usage if wanted, and `[DONE]`."""
        made, shown = self.ticket.generations, [0] * len(self.ticket.generations)
        tokens = [0] * len(made)
        index_of = {generation: index for index, generation in enumerate(made)}
        if self.body.echo:
            for index, generation in enumerate(made):
                text = self.tokenizer.decode(generation.request.prompt)
                shown[index] = len(text)
                yield self._event([choice(index, text, None, None)])
        try:
            async for update in self.ticket:
                index, logs = index_of[update.generation], None
                if self.body.logprobs is not None and update.score is not None:
                    scores: list[Scored | None] = [update.score]
                    token = update.generation.tokens[tokens[index]]
                    logs = logprobs(self.tokenizer, [token], scores, shown[index])
                tokens[index] += 1
                shown[index] += len(update.text)
                if update.text or logs or update.finish:
                    yield self._event([choice(index, update.text, update.finish, logs)])
        except Stopped as error:
            yield _data(_error(503, str(error)))
            return
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield self._event([], usage=usage(made, self.body.n or 1))
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return _data(self.common | {"choices": choices} | more)


async def _until_end(events: AsyncIterator[str], worker: Worker, ticket: Ticket) -> AsyncIterator[str]:
    """Yield events; whoever stops listening, by leaving too, ends the requests."""
    try:
        async for event in events:
            yield event
    finally:
        worker.cancel(ticket)


async def _unless_gone(answer: _Answer, worker: Worker, request: Request) -> Response:
    """Wait for a whole answer, or until the client has left."""
    made, gone = asyncio.ensure_future(answer.whole()), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((made, gone), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(made.result()) if made.done() else Response(status_code=499)
    except Stopped as error:
        return _refusal(503, str(error))
    finally:
        made.cancel()
        gone.cancel()
        worker.cancel(answer.ticket)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Limited:
    """Refuses bodies of more than MOST_BYTES, without reading on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MOST_BYTES:
                raise HTTPException(413, f"the body has more than {MOST_BYTES} bytes")
            return message

        await self.app(scope, counted if scope["type"] == "http" else receive, send)


def _require_model(wanted: str, name: str) -> None:
    if wanted != name:
        raise HTTPException(404, f"model={wanted!r}: not served here, only {name!r} is")


async def _on_invalid(_: Request, error: Exception) -> Response:
    """Answer a body of the wrong form with its first mistake."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return _refusal(400, f"{where or 'body'}: {first['msg']}", param=where or None)


async def _on_status(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _refusal(error.status_code, str(error.detail))


def _refusal(status: int, message: str, param: str | None = None) -> Response:
    return JSONResponse(_error(status, message, param), status_code=status)


def _error(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def _data(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
