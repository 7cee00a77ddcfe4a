"""A small corpus of two domains in the test's own folder, and a runs directory that is thrown away."""

import json
import random
from pathlib import Path

import pytest

from dsv2.data.corpora import Files

WORDS = [
    "latent",
    "attention",
    "compresses",
    "keys",
    "and",
    "values",
    "into",
    "one",
    "small",
    "vector",
    "while",
    "experts",
    "share",
    "every",
    "token",
    "学习",
    "naïve",
]


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def write_corpus(folder: Path, num_documents: int = 40) -> None:
    """Documents of two domains in one .jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    with (folder / "texts.jsonl").open("w") as file:
        for number in range(num_documents):
            text = " ".join(draw.choices(WORDS, k=120)) + f". {number}\n"
            file.write(json.dumps({"text": text, "domain": "even" if number % 2 == 0 else "odd"}) + "\n")


@pytest.fixture
def corpus(tmp_path: Path) -> Files.Config:
    write_corpus(tmp_path / "texts")
    return Files.Config(path=str(tmp_path / "texts" / "*.jsonl"), vocab_size=300, val_ratio=0.2)
