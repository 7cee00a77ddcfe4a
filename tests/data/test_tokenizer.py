"""Byte-level BPE: text to tokens and back, exactly, and what a token stands for."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from dsv2.config import ConfigError
from dsv2.data.tokenizer import END_ID, END_OF_TEXT, Tokenizer, load_tokenizer

TEXTS = ["the cat sat on the mat, the cat's mat.\n\n  def f(x):\n    return x + 1\n", "数学 的 学习 naïve café"] * 3
TOKENIZER = Tokenizer.train(TEXTS, 320)


def test_training_is_deterministic() -> None:
    again = Tokenizer.train(list(TEXTS), 320)
    assert again.hash == TOKENIZER.hash
    assert Tokenizer.train([*TEXTS, "quite another text, quite another"], 320).hash != TOKENIZER.hash


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(), max_size=3))
def test_round_trip_is_exact(texts: list[str]) -> None:
    for text, ids in zip(texts, TOKENIZER.encode_batch(texts), strict=True):
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.token_bytes[ids].sum() == len(text.encode())


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab' sl1.\n\t\u00a0\u3000学é_é")), max_size=40))
def test_cutting_into_pieces_changes_no_token(text: str) -> None:
    assert TOKENIZER.encode(text) == TOKENIZER._backend.encode(text).ids


@pytest.mark.parametrize("text", TEXTS[:2])
def test_cutting_keeps_the_merges_of_words(text: str) -> None:
    """On texts whose words were learnt, where a cut in the wrong place would cost merges."""
    ids = TOKENIZER.encode(text)
    assert ids == TOKENIZER._backend.encode(text).ids
    assert max(TOKENIZER.token_bytes[ids]) >= 3


def test_end_of_text_in_a_document_is_text() -> None:
    ids = TOKENIZER.encode(f"a{END_OF_TEXT}b")
    assert END_ID not in ids
    assert TOKENIZER.decode(ids) == f"a{END_OF_TEXT}b"
    assert TOKENIZER.decode([END_ID]) == END_OF_TEXT
    assert TOKENIZER.token_bytes[END_ID] == 0


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", 320)
    assert loaded.hash == TOKENIZER.hash
    assert loaded.encode(f"the cat{END_OF_TEXT}") == TOKENIZER.encode(f"the cat{END_OF_TEXT}")
    np.testing.assert_array_equal(loaded.token_bytes, TOKENIZER.token_bytes)


def test_a_text_too_small_for_the_vocabulary_leaves_ids_unused() -> None:
    tokenizer = Tokenizer.train(["ab"], 500)
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) == 500
    assert tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.decode([499]) == ""


def test_a_vocabulary_without_room_for_all_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size=256 is not valid: at least 257"):
        Tokenizer.train(TEXTS, 256)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("the cat学习é😀 ")), max_size=30))
def test_pieces_join_to_the_text(text: str) -> None:
    """One of each token; a character made of several tokens is the last one's."""
    ids = TOKENIZER.encode(text)
    pieces = TOKENIZER.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_pieces_of_a_cut_character_are_replacement_characters() -> None:
    ids = TOKENIZER.encode("😀")
    assert len(ids) == 4
    assert TOKENIZER.pieces(ids) == ["", "", "", "😀"]
    assert TOKENIZER.pieces(ids[:2]) == ["", "\ufffd"]
    assert TOKENIZER.pieces([]) == []


# ---- of imported models ----------------------------------------------------------------------------------------------


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A folder with another model's `tokenizer.json`, whose settings a test writes."""
    Tokenizer.train(TEXTS, vocab_size=300).save(tmp_path / "tokenizer.json")
    return tmp_path


def opened(folder: Path, settings: str) -> Tokenizer:
    (folder / "tokenizer_config.json").write_text(settings)
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("settings", ["{}", '{"bos_token": null}', '{"bos_token": "<s>"}'])
def test_what_begins_a_text_has_to_be_named_and_known(imported: Path, settings: str) -> None:
    with pytest.raises(ValueError, match="names no bos_token or eos_token"):
        opened(imported, settings)


@pytest.mark.parametrize(
    ("settings", "start", "end"),
    [
        ('{"bos_token": "b", "eos_token": "e"}', "b", "e"),
        ('{"eos_token": "e"}', "e", "e"),
        ('{"bos_token": "<s>", "eos_token": {"content": "e"}}', "e", "e"),  # the tokenizer has no <s>
        ('{"bos_token": {"content": "b"}}', "b", "b"),
    ],
)
def test_a_text_begins_with_bos_and_ends_with_eos(imported: Path, settings: str, start: str, end: str) -> None:
    tokenizer = opened(imported, settings)
    assert [tokenizer.start_id] == tokenizer.encode(start)
    assert [tokenizer.end_id] == tokenizer.encode(end)
    assert tokenizer.prefix == ()  # named, but nothing says that texts are begun with it


def test_special_tokens_are_neither_added_nor_hidden(imported: Path) -> None:
    """What an imported tokenizer puts before a text is left to the caller, who knows where a text begins."""
    backend = tokenizers.Tokenizer.from_file(str(imported / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END_ID)])
    assert backend.encode("lower").ids[0] == END_ID
    backend.save(str(imported / "tokenizer.json"))
    tokenizer = opened(imported, '{"bos_token": "<|endoftext|>"}')
    assert END_ID not in tokenizer.encode("lower")
    assert tokenizer.prefix == (END_ID,)
    assert tokenizer.decode([END_ID]) == "<|endoftext|>"


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


def test_ids_that_have_a_token_are_known(imported: Path) -> None:
    """Also where ids are left out in between; others have no bytes and no text."""
    assert Tokenizer.train(["ab"], 500).ids.tolist() == list(range(258))
    content = json.loads((imported / "tokenizer.json").read_text())
    content["model"]["vocab"]["<far>"] = 900
    content["added_tokens"] += [content["added_tokens"][-1] | {"id": 900, "content": "<far>"}]
    (imported / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = opened(imported, '{"bos_token": "<far>"}')
    assert tokenizer.vocab_size == 901
    assert tokenizer.ids.tolist() == [*range(len(tokenizer.ids) - 1), 900]
    assert tokenizer.start_id == 900
    for index in (500, 5000):
        assert tokenizer.decode([index]) == "".join(tokenizer.pieces([index])) == ""
        assert TOKENIZER.decode([index]) == ""


@pytest.mark.parametrize("settings", ["[1]", "{", "[" * 100_000])
def test_settings_that_are_no_object_are_refused(imported: Path, settings: str) -> None:
    with pytest.raises(ValueError, match=re.escape(str(imported))):
        opened(imported, settings)
