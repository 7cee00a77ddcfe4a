"""What the page looks at: a trained run that routes, its tokenizer, and its weights at the steps that were kept.

T tokens a sequence.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dsv2.data.source import Source
from dsv2.data.tokenizer import END_OF_TEXT, Tokenizer
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from dsv2.storage import checkpoints
from dsv2.storage.rundir import read_result
from dsv2.training.run import Run, from_plain
from dsv2.training.saved import CONFIG, load_config, load_model

SHOWN_TOKENS = 96  # of held-out text, where a run's sequences are longer
SEQUENCES = 20  # that held-out text is looked for in


class Subject(NamedTuple):
    """A run that can be explored."""

    folder: Path
    config: Run.Config
    tokenizer: Tokenizer
    steps: tuple[int, ...]  # whose weights can be had, oldest first; 0 is the initial weights
    held_out: str  # some sentences of validation text

    @property
    def name(self) -> str:
        """Arm and seed of a study's trial, else the folder."""
        return f"{self.config.arm}, seed {self.config.seed}" if self.config.arm else self.folder.name

    @property
    def most_tokens(self) -> int:
        """T of the training: the model has never seen a later position."""
        return self.config.trainer.sequence_length

    @property
    def moe(self) -> MoE.Config:
        assert isinstance(self.config.model.ffn, MoE.Config)
        return self.config.model.ffn

    @property
    def moe_layers(self) -> list[int]:
        """Numbers of the layers that route, as in `routing.parquet`."""
        model = self.config.model
        return list(range(model.num_layers - model.num_moe_layers, model.num_layers))


def open_subject(folder: Path) -> Subject:
    """A run directory, opened. ValueError that says why where its routing of a text cannot be shown."""
    values = load_config(folder)
    if "data" not in values:
        raise ValueError(f"{folder}: imported; its {CONFIG} names no data, so there is no tokenizer for a text")
    config = from_plain(values)
    if not config.model.num_moe_layers:
        raise ValueError(f"{folder}: a dense model routes nothing; explore needs a run with model/ffn=moe")
    steps = checkpoints.steps(folder / "checkpoints")
    if not steps:
        raise ValueError(f"{folder}: no sound checkpoint in {folder / 'checkpoints'}; train it first")
    settings = config.trainer
    source = config.data.open(
        sequence_length=settings.sequence_length, seed=0, validation_tokens=settings.validation_tokens
    )
    if source.tokenizer is None:
        raise ValueError(f"{folder}: its data are no text, so there is no tokenizer for a text")
    trained_with = read_result(folder).get("data", {}).get("trained_tokenizer")
    if trained_with not in (None, source.identity["trained_tokenizer"]):
        raise ValueError(f"{folder}: its corpus has changed since, and its tokenizer with it; bring the old files back")
    return Subject(folder, config, source.tokenizer, (0, *steps), held_out(source, source.tokenizer))


def held_out(source: Source, tokenizer: Tokenizer) -> str:
    """Whole sentences of one validation sequence, at most `SHOWN_TOKENS` tokens or T; whole words if none fits.

    Of the first sequences the one that gives most.
    """
    most = min(source.sequence_length, SHOWN_TOKENS)
    sequences = source.validation().inputs[:SEQUENCES, : 2 * most].tolist()
    texts = [max(tokenizer.decode(ids).split(END_OF_TEXT), key=len).strip("\ufffd") for ids in sequences]
    found = max((_fitting(_sentences(text), tokenizer, most) for text in texts), key=len)
    return found or _fitting(texts[0].split()[1:-1], tokenizer, most) or texts[0][: most // 8]


def _sentences(text: str) -> list[str]:
    """Without the first and the last, which may be cut."""
    return re.split(r"(?<=[.!?])\s+", text)[1:-1]


def _fitting(parts: Sequence[str], tokenizer: Tokenizer, most: int) -> str:
    """The first parts that make at most so many tokens."""
    text = ""
    for part in parts:
        longer = f"{text} {part}".strip()
        if len(tokenizer.encode(longer)) > most:
            break
        text = longer
    return text


@lru_cache(maxsize=8)
def model_at(folder: Path, step: int) -> Transformer:
    """The run's model at one of `Subject.steps`, in evaluation mode."""
    if step:
        return load_model(folder, step)
    config = from_plain(load_config(folder))
    return config.model.build(seed=config.seed).eval()
