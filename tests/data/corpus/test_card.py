"""The data card's own numbers, against the documents."""

from collections import Counter
from pathlib import Path

import pytest

from dsv2.data.corpus.build import build
from dsv2.data.corpus.settings import Shares
from dsv2.data.tokenizer import Tokenizer


def test_shares_and_bytes_per_token_are_those_of_the_documents(make, tmp_path: Path) -> None:
    shares = Shares.Config(weights={"english": 1.0, "chinese": 1.12, "code": 0.2}, tokens=20_000)
    corpus = build(make(shares=shares).order(), tmp_path / "out", vocabularies=[280])
    tokenizer = Tokenizer.load(corpus.folder / "tokenizer.json")
    tokens: Counter[str] = Counter()
    held_out: dict[str, list[str]] = {}
    for document in corpus.documents():
        if document.held_out:
            held_out.setdefault(document.domain, []).append(document.text)
        else:
            tokens[document.domain] += len(tokenizer.encode(document.text)) + 1
    mixture = corpus.card["mixture"]
    taken = {domain: part["tokens"] for domain, part in mixture.items() if part["tokens"]}
    assert taken == tokens
    assert mixture["chinese"]["share"] == pytest.approx(tokens["chinese"] / sum(tokens.values()))
    assert tokens["chinese"] / tokens["english"] == pytest.approx(1.12, rel=0.1)  # whole documents
    assert mixture["chinese"]["epochs"] > 1
    assert set(corpus.card["bytes_per_token"]["280"]) == set(held_out)
    assert all(1 <= ratio < 4 for ratio in corpus.card["bytes_per_token"]["280"].values())
    assert corpus.card["duplicates"]["training"]["2"] > 0
    assert corpus.card["quality_rules"]
