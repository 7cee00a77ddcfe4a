"""The text of an answer token by token: stop strings across tokens, characters of several bytes, special tokens."""

import itertools

import pytest

from dsv2.data.tokenizer import END_ID, Tokenizer
from dsv2.inference.engine.text import TextStream


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every byte is a token, and so are `ab` and `bc`."""
    return Tokenizer.train(["ab", "bc"] * 9, vocab_size=259)


def single(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of single bytes."""
    return [
        next(token for token in tokenizer.ids if tokenizer.bytes_of(token) == bytes([byte])) for byte in text.encode()
    ]


def streamed(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """The pieces of a text, the last of which comes at its end; tokens after a stop string are not read."""
    stream, pieces = TextStream(tokenizer, stops), list[str]()
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.end()], stream


def test_a_character_appears_with_its_last_byte(tokenizer: Tokenizer) -> None:
    pieces, stream = streamed(tokenizer, single(tokenizer, "é🙂a"))
    assert pieces == ["", "é", "", "", "", "🙂", "a", ""]
    assert stream.text == "é🙂a"


def test_half_a_character_is_shown_as_such_at_the_end_or_once_it_cannot_be_completed(tokenizer: Tokenizer) -> None:
    ids = single(tokenizer, "🙂")[:2]
    assert streamed(tokenizer, ids)[0] == ["", "", "\ufffd"]
    assert streamed(tokenizer, [*ids, *single(tokenizer, "a")])[0] == ["", "", "\ufffda", ""]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("xSTOPy", ("STOP",), ["x", "", "", "", "", ""]),
        ("xSTxSTOP", ("STOP",), ["x", "", "", "STx", "", "", "", "", ""]),
        ("aaab", ("aab",), ["", "", "a", "", ""]),  # the second a may begin it as well
        ("xST", ("STOP",), ["x", "", "", "ST"]),  # it ends before it is whole
        ("abcd", ("cd", "b"), ["a", "", ""]),
        ("abcd", ("abcde", "c"), ["", "", "ab", ""]),
        ("a🙂b", ("🙂",), ["a", "", "", "", "", ""]),
        ("STOP", ("STOP",), ["", "", "", "", ""]),
    ],
)
def test_nothing_of_a_stop_string_is_shown(
    tokenizer: Tokenizer, text: str, stops: tuple[str, ...], expected: list[str]
) -> None:
    pieces, stream = streamed(tokenizer, single(tokenizer, text), stops)
    assert pieces == expected
    assert stream.text == "".join(pieces)
    assert stream.stopped == any(stop in text for stop in stops)


def test_a_stop_string_may_begin_and_end_within_tokens(tokenizer: Tokenizer) -> None:
    """Of `ab` and `bc`, the string `bb` has the end of one and the beginning of the other."""
    ids = tokenizer.encode("abbc")
    assert [tokenizer.bytes_of(token) for token in ids] == [b"ab", b"bc"]
    assert streamed(tokenizer, ids, ("bb",))[0] == ["a", "", ""]
    assert streamed(tokenizer, ids, ("c", "b"))[1].text == "a"  # the first in the text, not in the list


def test_pieces_are_the_text_for_every_way_to_cut_it(tokenizer: Tokenizer) -> None:
    """All texts of four of these letters, with and without stop strings: what a search in the whole text finds."""
    for letters in itertools.product("ab\u00e9", repeat=4):
        text = "".join(letters)
        for stops in ((), ("ab",), ("aa", "ba"), ("a\u00e9b",)):
            pieces, stream = streamed(tokenizer, single(tokenizer, text), stops)
            ends = [text.index(stop) for stop in stops if stop in text]
            first = (
                min((text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text)[1]
                if ends
                else None
            )
            assert "".join(pieces) == stream.text == text[:first]


def test_special_tokens_have_their_text_and_ids_without_a_token_none(tokenizer: Tokenizer) -> None:
    assert streamed(tokenizer, [END_ID, 999])[1].text == "<|endoftext|>"
