"""What clients get, in OpenAI's form."""

import asyncio
import json
import math
from typing import Any

import pytest

from dsv2.inference.engine.request import Generation, Request, Scored
from dsv2.inference.engine.text import TextStream
from dsv2.inference.reader import Reader
from dsv2.inference.server.answers import LEAST, Answer, Continuation, Reply
from dsv2.inference.server.schema import Chat, Completion
from dsv2.inference.server.worker import Ticket


def generated(reader: Reader, *texts: str, scores: Scored | None = None, stopped: bool = True) -> Ticket:
    """Answers to one prompt, token by token, the last of which is a stop id."""
    generations, updates = list[Generation](), []
    for sample, text in enumerate(texts):
        tokens = [*reader.tokenizer.encode(text), *[reader.tokenizer.end_id] * stopped]
        request = Request(
            prompt=reader.prompt("ban"),
            max_new_tokens=len(tokens),
            sample=sample,
            stop_ids=frozenset([reader.tokenizer.end_id]),
            log_probabilities=scores is not None,
        )
        generations.append(Generation(request, TextStream(reader.tokenizer), None))
        for token in tokens:
            generations[-1].scores += [] if scores is None else [scores]
            updates.append(generations[-1].take(token, 64))
    ticket = Ticket(generations, len(generations))
    for update in updates:
        ticket.updates.put_nowait(update)
    return ticket


def events(answer: Answer) -> list[dict[str, Any]]:
    """The choices of a stream, without those of other events."""

    async def read() -> list[str]:
        return [line async for line in answer.stream()]

    lines = asyncio.run(read())
    assert lines[-1] == "data: [DONE]\n\n"
    made = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len({(each["id"], each["object"]) for each in made}) == 1
    return [choice for each in made for choice in each["choices"]]


# ---- continuations ---------------------------------------------------------------------------------------------------


def test_log_probabilities_have_texts_and_places(reader: Reader) -> None:
    """Minus infinity has a number; of tokens with the same text, such as halves of characters, the likeliest counts."""
    a, b = reader.tokenizer.encode("b"), reader.tokenizer.encode("n")
    halves = [token for token in reader.tokenizer.ids if reader.tokenizer.bytes_of(token) in (b"\xff", b"\xfe")]
    scored = Scored(-math.inf, ((halves[0], -0.1), (a[0], -0.5), (halves[1], -3.0), (b[0], -math.inf)))
    answer = Continuation(reader.tokenizer, Completion(model="small", prompt="ban"), generated(reader, "b"))
    assert answer._logprobs([*a, *b], [None, scored], 10) == {
        "tokens": ["b", "n"],
        "token_logprobs": [None, LEAST],
        "top_logprobs": [None, {"\ufffd": -0.1, "b": -0.5, "n": LEAST}],
        "text_offset": [10, 11],
    }


def test_an_answer_that_ended_by_a_stop_id_does_not_show_it(reader: Reader) -> None:
    """A prompt counts once in the usage, whatever the number of its answers."""
    body = Completion(model="small", prompt="ban", n=2, echo=True)
    ticket = generated(reader, "lor", "lor")
    made = asyncio.run(Continuation(reader.tokenizer, body, ticket).whole())
    assert made["choices"][1] == {"index": 1, "text": "banlor", "logprobs": None, "finish_reason": "stop"}
    read, wrote = len(reader.prompt("ban")), 2 * len(ticket.generations[0].tokens)
    assert made["usage"] == {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
    assert (made["object"], made["model"]) == ("text_completion", "small")


# ---- replies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "opening", "content"),
    [
        (" lor ban", " ", "lor ban"),
        ("lor ban", " ", "lor ban"),  # the model did not write it
        ("  lor", " ", " lor"),
        ("lor ban", "", "lor ban"),
        ("lorban", "lor", "ban"),
        ("lo", "lor", "lo"),  # ends while it may still become the opening
        ("lorb", "lorben", "lorb"),
        ("lobe", "lor", "lobe"),
        ("", " ", ""),
        ("é lor", "é ", "lor"),
    ],
)
def test_a_reply_is_what_follows_the_opening_whole_and_in_pieces(
    reader: Reader, text: str, opening: str, content: str
) -> None:
    for stopped in (True, False):
        if not (text or stopped):
            continue
        whole = Chat(model="small", messages=[{"role": "user", "content": "ban"}])
        made = asyncio.run(Reply(reader.tokenizer, whole, generated(reader, text, stopped=stopped), opening).whole())
        message = {"role": "assistant", "content": content, "refusal": None}
        finish = "stop" if stopped else "length"
        assert made["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}]
        assert made["object"] == "chat.completion"
        streamed = whole.model_copy(update={"stream": True})
        first, *others = events(Reply(reader.tokenizer, streamed, generated(reader, text, stopped=stopped), opening))
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in others) == content
        assert [choice["finish_reason"] for choice in others][-1] == finish
        assert all(choice["delta"] or choice["finish_reason"] for choice in others)


def test_log_probabilities_of_a_reply_are_those_of_all_its_tokens(reader: Reader) -> None:
    """That of the opening, and the stop id, too; in a stream, each with its token."""
    (token,) = reader.tokenizer.encode("b")
    scored = Scored(-0.5, ((token, -0.25), (token + 1, -math.inf)))
    body = Chat(model="small", messages=[{"role": "user", "content": "ban"}], logprobs=True, top_logprobs=2)
    made = asyncio.run(Reply(reader.tokenizer, body, generated(reader, " b", scores=scored), " ").whole())
    ids = [*reader.tokenizer.encode(" b"), reader.tokenizer.end_id]
    content = made["choices"][0]["logprobs"]["content"]
    assert [each["token"] for each in content] == [*reader.tokenizer.pieces(ids[:-1]), "<|endoftext|>"]
    assert [bytes(each["bytes"]) for each in content] == [reader.tokenizer.bytes_of(each) for each in ids]
    assert {each["logprob"] for each in content} == {-0.5}
    assert content[0]["top_logprobs"][0] == {"token": "b", "bytes": [98], "logprob": -0.25}
    assert content[0]["top_logprobs"][1]["logprob"] == LEAST
    streamed = body.model_copy(update={"stream": True})
    pieces = events(Reply(reader.tokenizer, streamed, generated(reader, " b", scores=scored), " "))
    assert [each for piece in pieces[1:] for each in piece["logprobs"]["content"]] == content
