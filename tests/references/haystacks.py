"""A small corpus in memory, whose tokenizer has tokens for what is hidden in it, but for every other answer."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from dsv2.data import corpora
from dsv2.data.documents import Document
from dsv2.data.needles import ANSWERS, SUBJECTS, WORDINGS, Needles
from dsv2.data.packing import PackedText
from dsv2.data.store import Split, Store
from dsv2.data.tokenizer import Tokenizer

WORDS = ("the", "people", "of", "these", "states", "have", "a", "duty", "to", "peace", "and", "commerce", "door", "is")


@contextmanager
def instead_of_speeches() -> Iterator[None]:
    """Let `data=needles` read these documents in place of 12 MB, which take seconds to tokenize."""
    texts = [Document(text, "english") for text in documents()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Needles.Config, "documents", lambda _: iter(texts))
        corpora._survey.cache_clear()
        yield
    corpora._survey.cache_clear()


def documents() -> list[str]:
    """Eighteen documents of 300 words each; the first and the thirteenth also have an answer."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=300)) + "." for _ in range(18)]
    texts[0] += f" The {ANSWERS[0].upper()} is ours."
    texts[12] += f" The {ANSWERS[0]} is ours."
    return texts


@lru_cache(maxsize=1)
def store() -> Store:
    """Twelve documents to train on and six held out."""
    texts = documents()
    said = [f" {part}" for wording in WORDINGS for part in wording] + [
        f" {word}" for word in (*ANSWERS[::2], *SUBJECTS)
    ]
    tokenizer = Tokenizer.train([*texts, *said * 20], 600)

    def split(documents: list[str]) -> Split:
        encoded = [[*tokenizer.encode(text), tokenizer.end_id] for text in documents]
        lengths = np.cumsum([0, *map(len, encoded)])
        return Split(np.concatenate(encoded).astype(np.uint16), lengths[:-1], np.zeros(len(documents), np.int8))

    return Store(split(texts[:12]), split(texts[12:]), ("english",), tokenizer, {"tokenizer": "none"}, Path())


def packed(length: int = 64, seed: int = 0) -> PackedText:
    """The corpus in sequences of `length` tokens."""
    return PackedText(store(), sequence_length=length, seed=seed, validation_tokens=4 * length, identity={})
