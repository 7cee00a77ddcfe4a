"""A saved model with its tokenizer, from a run directory: text to tokens and back."""

import json
from pathlib import Path
from typing import NamedTuple, Protocol

import tokenizers

from dsv2.data.tokenizer import END_ID
from dsv2.models.transformer import Transformer
from dsv2.training.saved import load_config, load_model, load_run

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"  # of an imported model, as Hugging Face names them
LONGEST = 4096  # tokens that an imported model is given at most, which says nowhere what it was trained on


class Encoding(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Reader(NamedTuple):
    """A model that reads and writes text."""

    model: Transformer
    tokenizer: Encoding
    start: int  # the token before a text; also what ends one
    longest: int  # tokens that the model was trained to read


class Imported:
    """A `tokenizer.json` beside an imported model."""

    def __init__(self, path: Path) -> None:
        self.backend = tokenizers.Tokenizer.from_file(str(path))

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)


def open_reader(folder: Path) -> Reader:
    """The model of a trained run, or of an imported one with its tokenizer's files beside it. Raises ValueError."""
    if "data" in load_config(folder):
        run = load_run(folder)
        length = run.trainer.sequence_length
        source = run.data.open(sequence_length=length, seed=0, validation_tokens=run.trainer.validation_tokens)
        if source.tokenizer is None:
            raise ValueError(f"{folder}: its data are no text, so there is no tokenizer for a task's text")
        return Reader(load_model(folder), source.tokenizer, END_ID, length)
    path = folder / TOKENIZER
    if not path.is_file():
        raise ValueError(
            f"{folder}: an imported model without {TOKENIZER}; put it there, and {SETTINGS}, of its origin"
        )
    tokenizer = Imported(path)
    return Reader(load_model(folder), tokenizer, _start(folder, tokenizer), LONGEST)


def _start(folder: Path, tokenizer: Imported) -> int:
    """The token that `tokenizer_config.json` calls the beginning of a text, or else its end."""
    path = folder / SETTINGS
    settings = json.loads(path.read_text()) if path.is_file() else {}
    for name in ("bos_token", "eos_token"):
        token = settings.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and (found := tokenizer.backend.token_to_id(content)) is not None:
            return found
    raise ValueError(f"{path}: names neither a bos_token nor an eos_token that {TOKENIZER} knows")
