"""Runs that the page can show: a run with MoE layers, the steps with weights, and an initial text.

T tokens per sequence.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from dsv2.data.source import Source
from dsv2.data.tokenizer import Tokenizer
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from dsv2.printing import warn
from dsv2.storage.weights import how_to_train
from dsv2.training.saved import SavedRun

SHOWN_TOKENS = 96  # maximum length of the initial text
SEQUENCES = 20  # validation sequences searched for the initial text
MOST_TOKENS = 4096  # maximum number of tokens shown
NO_TEXT = "The held-out text of this run is not available: type or paste your own text."


class Subject(NamedTuple):
    """A run that can be explored."""

    run: SavedRun
    moe: MoE.Config
    steps: tuple[int | None, ...]  # steps with weights, oldest first; 0: initial weights; None: imported weights
    held_out: str  # a few sentences of validation text

    @property
    def name(self) -> str:
        """Arm and seed for a study's trial, else the name of the folder."""
        if self.run.imported or not self.run.config.arm:
            return self.run.folder.resolve().name
        return f"{self.run.config.arm}, seed {self.run.config.seed}"

    @property
    def most_tokens(self) -> int:
        """Sequence length of the training, since the model has not seen later positions."""
        return min(self.run.longest, MOST_TOKENS)

    @property
    def moe_layers(self) -> list[int]:
        """Indices of the MoE layers, as in `routing.parquet`."""
        return list(self.run.model_config.moe_layers)


def open_subject(run: SavedRun) -> Subject:
    """Prepare a run to be explored. Raises ValueError if its routing of a text cannot be shown."""
    moe = run.model_config.moe
    if moe is None:
        raise ValueError(f"{run.folder}: a dense model has no routing; explore needs a run with model/ffn=moe")
    if not run.imported and not run.steps:
        raise ValueError(
            f"{run.folder}: no valid checkpoint in {run.folder / 'checkpoints'}; {how_to_train(run.folder)}"
        )
    tokenizer = run.tokenizer
    try:
        text = held_out(run.source, tokenizer)
    except ValueError as error:  # the user's own text needs only the tokenizer
        warn(error)
        text = NO_TEXT
    if run.imported:
        return Subject(run, moe, (None,), text)
    initial = () if run.config.init_from is not None or 0 in run.steps else (0,)  # from a seed: they are not stored
    return Subject(run, moe, (*initial, *run.steps), text)


def held_out(source: Source, tokenizer: Tokenizer) -> str:
    """Return whole sentences of a validation sequence, at most `SHOWN_TOKENS` or T tokens; whole words if none fit.

    Of the first sequences, the one with the longest text is taken.
    """
    most, end = min(source.sequence_length, SHOWN_TOKENS), tokenizer.decode([tokenizer.end_id])
    sequences = source.validation().inputs[:SEQUENCES, : 2 * most].tolist()
    texts = [max(tokenizer.decode(ids).split(end), key=len).strip("\ufffd") for ids in sequences]
    sentences = max((_fitting(_sentences(text), tokenizer, most) for text in texts), key=len)
    return sentences or _fitting(texts[0].split()[1:-1], tokenizer, most) or texts[0][: most // 8]


def _sentences(text: str) -> list[str]:
    """Split into sentences, without the first and last, which may be cut off."""
    return re.split(r"(?<=[.!?])\s+", text)[1:-1]


def _fitting(parts: Sequence[str], tokenizer: Tokenizer, most: int) -> str:
    """Join the first parts that have at most `most` tokens together."""
    text = ""
    for part in parts:
        longer = f"{text} {part}".strip()
        if len(tokenizer.encode(longer)) > most:
            break
        text = longer
    return text


@lru_cache(maxsize=8)
def model_at(run: SavedRun, step: int | None) -> Transformer:
    """Return the run's model at one of `Subject.steps`, in evaluation mode."""
    return run.model_at(step)
