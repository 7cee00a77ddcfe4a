"""A corpus of one domain and one of two, opened for questions, and questions cut from what they hold out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import dsv2
from dsv2.data.maths import worksheets
from dsv2.data.packing import PackedText
from dsv2.evaluation import cloze
from dsv2.evaluation.choice import Choice


def opened(path: str, sequence_length: int) -> PackedText:
    settings = ["data=files", f"data.path={path}", "data.vocab_size=300"]
    source = dsv2.load(settings).data.open(sequence_length=sequence_length, seed=0, validation_tokens=512)
    assert isinstance(source, PackedText)
    return source


@pytest.fixture
def source(corpus: str) -> PackedText:
    """A corpus of one domain; 300 tokens, sequences of 32."""
    return opened(corpus, sequence_length=32)


@pytest.fixture
def two_domains(source: PackedText, tmp_path: Path) -> PackedText:
    """The corpus' words as two domains, one of them generated maths; 300 tokens, sequences of 128."""
    sheets = [sheet.text for sheet in worksheets(20_000, val_ratio=0.1, seed=5)]
    words = source.tokenizer.decode(source.store.train.tokens.tolist()).split("<|endoftext|>")[:-1]
    rows = [("maths", text) for text in sheets] + [("words", text) for text in words]
    (tmp_path / "both.jsonl").write_text("\n".join(json.dumps({"domain": d, "text": t}) for d, t in rows))
    return opened(f"{tmp_path}/both.jsonl", sequence_length=128)


@pytest.fixture
def held_out() -> Callable[..., list[Choice]]:
    """Cloze questions from a corpus: `held_out(source)`, 40 of them of 12 + 4 tokens unless said."""

    def cut(source: PackedText, count: int = 40, context: int = 12, continuation: int = 4) -> list[Choice]:
        return cloze.questions(
            source.store.val, source.domains, count=count, context=context, continuation=continuation
        )

    return cut
