"""A small corpus of two domains in the test's own folder."""

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


@pytest.fixture
def corpus_config(tmp_path: Path) -> Files.Config:
    """The config of a corpus of 40 documents of the domains even and odd, in `texts/texts.jsonl`."""
    folder = tmp_path / "texts"
    folder.mkdir()
    draw = random.Random(0)
    with (folder / "texts.jsonl").open("w") as file:
        for number in range(40):
            text = " ".join(draw.choices(WORDS, k=120)) + f". {number}\n"
            file.write(json.dumps({"text": text, "domain": "even" if number % 2 == 0 else "odd"}) + "\n")
    return Files.Config(path=str(folder / "*.jsonl"), vocab_size=300, val_ratio=0.2)
