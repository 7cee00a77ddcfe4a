"""What clients send, as requests; what they get, in OpenAI's form."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from dsv2.inference.engine.request import Generation, Scored
from dsv2.inference.engine.text import TextStream
from dsv2.inference.reader import Reader
from dsv2.inference.server.schema import LEAST, Completion, logprobs, usage, whole


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


@pytest.mark.parametrize("prompt", [5, None, [], [[]], [1.5], ["a", 1], [[1], "a"], {"text": "a"}, True])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        body(prompt=prompt)


def test_log_probabilities_have_texts_and_places(reader: Reader) -> None:
    """Minus infinity has a number; of tokens with the same text, such as halves of characters, the likeliest counts."""
    a, b = reader.tokenizer.encode("b"), reader.tokenizer.encode("n")
    halves = [token for token in reader.tokenizer.ids if reader.tokenizer.bytes_of(token) in (b"\xff", b"\xfe")]
    scored = Scored(-math.inf, ((halves[0], -0.1), (a[0], -0.5), (halves[1], -3.0), (b[0], -math.inf)))
    made = logprobs(reader.tokenizer, [*a, *b], [None, scored], 10)
    assert made == {
        "tokens": ["b", "n"],
        "token_logprobs": [None, LEAST],
        "top_logprobs": [None, {"\ufffd": -0.1, "b": -0.5, "n": LEAST}],
        "text_offset": [10, 11],
    }


def test_an_answer_that_ended_by_a_stop_id_does_not_show_it(reader: Reader) -> None:
    """A prompt counts once in the usage, whatever the number of its answers."""
    end = reader.tokenizer.end_id
    asked = body(n=2, echo=True)
    generations = []
    for request in asked.requests(reader):
        generation = Generation(request, TextStream(reader.tokenizer), None)
        for token in [*reader.tokenizer.encode("lor"), end]:
            generation.take(token, 64)
        generations.append(generation)
    assert whole(reader.tokenizer, 1, generations[1], asked) == {
        "index": 1,
        "text": "banlor",
        "logprobs": None,
        "finish_reason": "stop",
    }
    read, made = len(reader.prompt("ban")), 2 * len(generations[0].tokens)
    assert usage(generations, 2) == {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
    }
