"""OpenAI's endpoints over one model: `python -m dsv2 serve RUN`.

One engine continues the requests of all clients together. Nothing is read from or sent to any other machine.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv2.data.chat import ChatTemplate
from dsv2.inference.engine.request import QueueFull
from dsv2.inference.engine.request import Request as Asked
from dsv2.inference.reader import Reader
from dsv2.inference.server.answers import Answer, Continuation, Reply, failure
from dsv2.inference.server.schema import Body, Chat, Completion
from dsv2.inference.server.worker import Stopped, Ticket, Worker

MOST_BYTES = 4 << 20  # of a request's body
HOSTS = ["127.0.0.1", "localhost"]  # other names for this machine could be those of web pages that a browser shows
NO_CHAT = "this model has no chat template, so that it can only continue text: use /v1/completions"


def build(reader: Reader, name: str, *, num_rows: int, max_waiting: int, context: int | None = None) -> FastAPI:
    """Return the application that serves a model under a name.

    At most `num_rows` answers are written at a time and `max_waiting` wait; what is beyond gets the status 429. A
    prompt and its answer have at most `context` tokens together (default: `reader.longest`). Raises ValueError for a
    chat template that is none.
    """
    chat = None if reader.tokenizer.chat_template is None else ChatTemplate(reader.tokenizer)
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

    @app.post("/v1/completions")
    async def completions(body: Completion, request: Request) -> Response:
        ticket = await submit(body, lambda: body.requests(reader))
        return await _respond(Continuation(reader.tokenizer, body, ticket), body, request, worker)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: Chat, request: Request) -> Response:
        if chat is None:
            raise HTTPException(400, NO_CHAT)
        ticket = await submit(body, lambda: body.requests(reader, chat, worker.engine.max_length))
        return await _respond(Reply(reader.tokenizer, body, ticket, chat.opening), body, request, worker)

    async def submit(body: Body, requests_of: Callable[[], list[Asked]]) -> Ticket:
        """Put what a body asks for in the queue. Raises HTTPException if that cannot be done."""
        _require_model(body.model, name)
        try:
            requests = requests_of()
            if len(requests) > num_rows + max_waiting:
                raise ValueError(f"n={body.n}: {len(requests)} answers, but at most {num_rows + max_waiting} can wait")
            return await worker.submit(requests)
        except QueueFull as error:
            raise HTTPException(429, str(error)) from None
        except Stopped as error:
            raise HTTPException(503, str(error)) from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from None

    return app


async def _respond(answer: Answer, body: Body, request: Request, worker: Worker) -> Response:
    if body.stream:
        return StreamingResponse(_until_end(answer.stream(), worker, answer.ticket), media_type="text/event-stream")
    return await _unless_gone(answer, worker, request)


async def _until_end(events: AsyncIterator[str], worker: Worker, ticket: Ticket) -> AsyncIterator[str]:
    """Yield events; whoever stops listening, by leaving too, ends the requests."""
    try:
        async for event in events:
            yield event
    finally:
        worker.cancel(ticket)


async def _unless_gone(answer: Answer, worker: Worker, request: Request) -> Response:
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
    return JSONResponse(failure(status, message, param), status_code=status)
