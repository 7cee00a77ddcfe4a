"""A model with its tokenizer: how a prompt becomes token ids."""

import pytest

import dsv2
from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.reader import Reader


def test_a_prompt_begins_as_its_tokenizer_begins_texts(quick: list[str]) -> None:
    model, tokenizer = dsv2.load(quick).model.build(), Tokenizer.train(["ban ben lor"] * 9, vocab_size=300)
    reader = Reader(model, tokenizer, longest=32)
    assert reader.prompt("ban ben") == tokenizer.encode("ban ben")
    with pytest.raises(ValueError, match="prompt='': must have at least one character"):
        reader.prompt("")
    tokenizer.prefix = (7,)
    assert reader.prompt("ban") == [7, *tokenizer.encode("ban")]
    assert reader.prompt("") == [7]  # enough to go on from
