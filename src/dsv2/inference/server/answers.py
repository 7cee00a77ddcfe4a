"""What clients of OpenAI's endpoints get: continuations of texts and replies in conversations, whole or as events."""

import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.engine.request import Finish, Generation, Scored, Update
from dsv2.inference.server.schema import Body, Chat, Completion
from dsv2.inference.server.worker import Stopped, Ticket

LEAST = -9999.0  # stands for minus infinity, which JSON lacks, as with OpenAI
NAMES: dict[Finish, str] = {"stop": "stop", "length": "length", "capacity": "length", "cancelled": "length"}


class Answer(ABC):
    """The answer to one HTTP request, with a choice for each of its generations."""

    prefix: str  # of its id
    kinds: tuple[str, str]  # what OpenAI calls it whole, and an event of it

    def __init__(self, tokenizer: Tokenizer, body: Body, ticket: Ticket) -> None:
        self.tokenizer, self.ticket, self.samples = tokenizer, ticket, body.samples
        self.includes_usage = body.stream_options is not None and body.stream_options.include_usage
        self.common = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": self.kinds[bool(body.stream)],
            "created": int(time.time()),
            "model": body.model,
        }

    @abstractmethod
    def ended(self, index: int, generation: Generation) -> dict[str, Any]:
        """Return the choice of a generation that has ended."""

    @abstractmethod
    def begun(self, index: int, generation: Generation) -> dict[str, Any] | None:
        """Return what comes before the first token of a choice, if anything does."""

    @abstractmethod
    def grown(self, index: int, update: Update, place: int) -> dict[str, Any] | None:
        """Return what the update of number `place` adds to a choice; None if nothing is certain by now."""

    async def whole(self) -> dict[str, Any]:
        """Wait for the end of all choices. Raises Stopped."""
        async for _ in self.ticket:
            pass
        made = self.ticket.generations
        choices = [self.ended(index, generation) for index, generation in enumerate(made)]
        return self.common | {"choices": choices, "usage": usage(made, self.samples)}

    async def stream(self) -> AsyncIterator[str]:
        """Yield server-sent events: pieces of text, the usage if wanted, and `[DONE]`; or an error."""
        made = self.ticket.generations
        updates = [0] * len(made)
        index_of = {generation: index for index, generation in enumerate(made)}
        for index, generation in enumerate(made):
            if (choice := self.begun(index, generation)) is not None:
                yield self._event([choice])
        try:
            async for update in self.ticket:
                index = index_of[update.generation]
                choice = self.grown(index, update, updates[index])
                updates[index] += 1
                if choice is not None:
                    yield self._event([choice])
        except Stopped as error:
            yield event(failure(503, str(error)))
            return
        if self.includes_usage:
            yield self._event([], usage=usage(made, self.samples))
        yield "data: [DONE]\n\n"

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        return event(self.common | {"choices": choices} | more)


class Continuation(Answer):
    """The answer to a `Completion`."""

    prefix, kinds = "cmpl", ("text_completion", "text_completion")

    def __init__(self, tokenizer: Tokenizer, body: Completion, ticket: Ticket) -> None:
        super().__init__(tokenizer, body, ticket)
        self.body, self.shown = body, [0] * len(ticket.generations)  # characters of each choice so far

    def ended(self, index: int, generation: Generation) -> dict[str, Any]:
        request = generation.request
        before = self.tokenizer.decode(request.prompt) if self.body.echo else ""
        tokens, scores = list(generation.tokens), list[Scored | None](generation.scores)
        if self.body.echo:
            tokens, scores = [*request.prompt, *tokens], [None, *generation.prompt_scores, *scores]
        logs = None if self.body.logprobs is None else self._logprobs(tokens, scores, 0)
        return _choice(index, generation.finish, logs, text=before + generation.text)

    def begun(self, index: int, generation: Generation) -> dict[str, Any] | None:
        if not self.body.echo:
            return None
        text = self.tokenizer.decode(generation.request.prompt)
        self.shown[index] = len(text)
        return _choice(index, None, None, text=text)

    def grown(self, index: int, update: Update, place: int) -> dict[str, Any] | None:
        logs = None
        if self.body.logprobs is not None and update.score is not None:
            logs = self._logprobs([update.generation.tokens[place]], [update.score], self.shown[index])
        self.shown[index] += len(update.text)
        if not (update.text or logs or update.finish):
            return None
        return _choice(index, update.finish, logs, text=update.text)

    def _logprobs(self, tokens: Sequence[int], scores: Sequence[Scored | None], start: int) -> dict[str, Any]:
        """Return the log-probabilities of tokens, whose text begins at character `start`; None for a token without."""
        texts = [_text(self.tokenizer, token) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [None if score is None else max(score.log_probability, LEAST) for score in scores],
            "top_logprobs": [None if score is None else self._top(score) for score in scores],
            "text_offset": [start + sum(map(len, texts[:place])) for place in range(len(texts))],
        }

    def _top(self, score: Scored) -> dict[str, float]:
        """Return the texts of the most likely tokens, of equal ones the likeliest, with their log-probabilities."""
        top = dict[str, float]()
        for token, log in score.alternatives:
            top.setdefault(_text(self.tokenizer, token), max(log, LEAST))
        return top


class Reply(Answer):
    """The answer to a `Chat`: the assistant's next message, without the `opening` that belongs to the template."""

    prefix, kinds = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def __init__(self, tokenizer: Tokenizer, body: Chat, ticket: Ticket, opening: str) -> None:
        super().__init__(tokenizer, body, ticket)
        self.body, self.opening = body, opening
        self.held: list[str | None] = [""] * len(ticket.generations)  # what may become the opening, until it is past

    def ended(self, index: int, generation: Generation) -> dict[str, Any]:
        logs = self._logprobs(generation.tokens, generation.scores) if self.body.logprobs else None
        message = {"role": "assistant", "content": generation.text.removeprefix(self.opening), "refusal": None}
        return _choice(index, generation.finish, logs, message=message)

    def begun(self, index: int, generation: Generation) -> dict[str, Any]:
        return _choice(index, None, None, delta={"role": "assistant", "content": ""})

    def grown(self, index: int, update: Update, place: int) -> dict[str, Any] | None:
        logs = None
        if self.body.logprobs and update.score is not None:
            logs = self._logprobs([update.generation.tokens[place]], [update.score])
        text, held = update.text, self.held[index]
        if held is not None:
            held += text
            waits = update.finish is None and len(held) < len(self.opening) and self.opening.startswith(held)
            self.held[index], text = (held, "") if waits else (None, held.removeprefix(self.opening))
        if not (text or logs or update.finish):
            return None
        return _choice(index, update.finish, logs, delta={"content": text} if text else {})

    def _logprobs(self, tokens: Sequence[int], scores: Sequence[Scored]) -> dict[str, Any]:
        return {
            "content": [
                self._token(token, score.log_probability)
                | {"top_logprobs": [self._token(*pair) for pair in score.alternatives]}
                for token, score in zip(tokens, scores, strict=True)
            ],
            "refusal": None,
        }

    def _token(self, token: int, log: float) -> dict[str, Any]:
        data = list(self.tokenizer.bytes_of(token))
        return {"token": _text(self.tokenizer, token), "bytes": data, "logprob": max(log, LEAST)}


def usage(generations: Sequence[Generation], samples: int) -> dict[str, int]:
    """Return how many tokens were read and made; a prompt counts once however many answers it has."""
    read = sum(len(generation.request.prompt) for generation in generations[::samples])
    made = sum(len(generation.tokens) for generation in generations)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def failure(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body of an error."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def event(content: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def _choice(index: int, finish: Finish | None, logs: dict[str, Any] | None, **content: Any) -> dict[str, Any]:
    """Return one entry of `choices`, whose content is `text`, `message` or `delta`."""
    return {
        "index": index,
        **content,
        "logprobs": logs,
        "finish_reason": None if finish is None else NAMES[finish],
    }


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.bytes_of(token).decode(errors="replace")
