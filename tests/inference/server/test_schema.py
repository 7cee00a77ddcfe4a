"""What clients send, as requests."""

from typing import Any

import pytest
from pydantic import ValidationError

from dsv2.data.chat import ChatTemplate
from dsv2.inference.reader import Reader
from dsv2.inference.server.schema import Chat, Completion


def body(**fields: Any) -> Completion:
    return Completion(**{"model": "small", "prompt": "ban"} | fields)


def test_defaults_are_openais(reader: Reader) -> None:
    """Nulls too, which clients send for what was not said."""
    nulls = ("max_tokens", "n", "stream", "stop", "seed", "temperature", "top_p", "logprobs", "echo", "suffix")
    for made in (body(), body(**dict.fromkeys(nulls))):
        (request,) = made.requests(reader)
        assert list(request.prompt) == reader.prompt("ban")
        assert (request.max_new_tokens, request.sampling.temperature, request.sampling.top_p) == (16, 1.0, 1.0)
        assert request.stop_ids == {reader.tokenizer.end_id}
        assert not request.scored
    assert len({body().requests(reader)[0].sampling.seed for _ in range(9)}) == 9


def test_every_field_reaches_the_request(reader: Reader) -> None:
    made = body(
        prompt=["ban", "lor"],
        n=2,
        max_tokens=7,
        stop="x",
        seed=5,
        temperature=0.5,
        top_p=0.8,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.2,
        logprobs=4,
        echo=True,
    ).requests(reader)
    assert [(list(request.prompt), request.sample) for request in made] == [
        (reader.prompt(text), sample) for text in ("ban", "lor") for sample in (0, 1)
    ]
    request, sampling = made[0], made[0].sampling
    assert (request.max_new_tokens, request.stops, request.alternatives) == (7, ("x",), 4)
    assert request.log_probabilities
    assert request.score_prompt
    assert (sampling.seed, sampling.temperature, sampling.top_p, sampling.top_k) == (5, 0.5, 0.8, 3)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.2)


def test_a_conversation_reaches_the_request(reader: Reader) -> None:
    """As text in parts too, and with an earlier answer as it was sent; without a limit, it may fill the context."""
    chat = ChatTemplate(reader.tokenizer)
    asked = {"role": "user", "content": [{"type": "text", "text": "ban "}, {"type": "text", "text": "ben"}]}
    answered = {"role": "assistant", "content": "lor", "refusal": None, "tool_calls": None}
    made = Chat(model="small", messages=[asked, answered, asked], seed=5, n=2, logprobs=True, top_logprobs=3)
    first, second = made.requests(reader, chat, 64)
    plain = [{"role": "user", "content": "ban ben"}, {"role": "assistant", "content": "lor"}]
    assert first.prompt == second.prompt == chat.prompt([*plain, plain[0]])
    assert (first.sample, second.sample, first.max_new_tokens, first.sampling.seed) == (0, 1, 64, 5)
    assert (first.log_probabilities, first.alternatives, first.score_prompt) == (True, 3, False)
    for limits in ({"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_tokens": 9, "max_completion_tokens": 7}):
        (request,) = Chat(model="small", messages=[asked], **limits).requests(reader, chat, 64)
        assert (request.max_new_tokens, request.scored) == (7, False)


@pytest.mark.parametrize("prompt", [5, None, [], [[]], [1.5], ["a", 1], [[1], "a"], {"text": "a"}, True])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        body(prompt=prompt)
