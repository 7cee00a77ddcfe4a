"""Requests: what they may ask, and how each way to end is told from the others, token by token."""

from typing import Any

import pytest
import torch

from dsv2.config import ConfigError
from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.engine.request import Finish, Generation, Request, seen_tokens
from dsv2.inference.engine.text import TextStream
from dsv2.inference.sampling import Sampling

ROOM = 10


def taken(tokens: list[int], **settings: Any) -> tuple[Generation, list[str]]:
    """A generation whose prompt is two tokens, after it took tokens until it ended, and its pieces of text."""
    tokenizer = Tokenizer.train(["ab"], vocab_size=257)
    request = Request(**{"prompt": [5, 6], "max_new_tokens": 20} | settings)
    generation = Generation(request, TextStream(tokenizer, request.stops), None)
    pieces = list[str]()
    for token in tokens:
        if generation.finish is None:
            pieces.append(generation.take(token, ROOM).text)
    return generation, pieces


def letters(text: str) -> list[int]:
    tokenizer = Tokenizer.train(["ab"], vocab_size=257)
    return tokenizer.encode(text)


@pytest.mark.parametrize(
    ("settings", "finish", "text", "count"),
    [
        ({"max_new_tokens": 3}, "length", "abc", 3),
        ({"stop_ids": frozenset(letters("dx"))}, "stop", "abc", 4),
        ({"stops": ("cd",)}, "stop", "ab", 4),
        ({"stops": ("cx",)}, "capacity", "abcdefgh", 8),
        ({"max_new_tokens": 4, "stop_ids": frozenset(letters("d"))}, "stop", "abc", 4),
        ({"max_new_tokens": 8, "stops": ("gh",)}, "stop", "abcdef", 8),
        ({"max_new_tokens": 8}, "length", "abcdefgh", 8),
        ({"max_new_tokens": 3, "stops": ("cd",)}, "length", "abc", 3),  # what was held back comes at the end
    ],
)
def test_answers_end_for_one_reason(settings: dict[str, Any], finish: Finish, text: str, count: int) -> None:
    generation, pieces = taken(letters("abcdefghij"), **settings)
    assert (generation.finish, generation.text, len(generation.tokens)) == (finish, text, count)
    assert "".join(pieces) == text


def test_tokens_count_as_seen_once_they_are_there() -> None:
    request = Request(prompt=[1, 3], max_new_tokens=5, sampling=Sampling(repetition_penalty=2.0))
    seen = seen_tokens(request, 6, torch.device("cpu"))
    generation = Generation(request, None, seen)
    generation.take(4, ROOM)
    assert generation.seen is not None
    assert generation.seen.tolist() == [False, True, False, True, True, False]
    assert seen_tokens(Request(prompt=[1], max_new_tokens=5), 6, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": []}, r"prompt=\[\] is not valid: at least one token"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 is not valid: 0 or more"),
        ({"stops": ("a", "")}, "stops="),
        ({"alternatives": -1}, "alternatives=-1"),
    ],
)
def test_what_may_not_be_asked_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request(**{"prompt": [1], "max_new_tokens": 1} | settings)
