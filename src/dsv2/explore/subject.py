"""What the page looks at: a run that routes, its weights at the steps that were kept, and a text to begin with.

T tokens per sequence.
"""

import re
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from dsv2.data.source import Source
from dsv2.data.tokenizer import Tokenizer
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from dsv2.training.saved import SavedRun

SHOWN_TOKENS = 96  # of held-out text, where a run's sequences are longer
SEQUENCES = 20  # that held-out text is looked for in
MOST_TOKENS = 4096  # that are painted, where a model could read more
NO_TEXT = "The held-out text of this run is gone: type or paste a text of your own."


class Subject(NamedTuple):
    """A run that can be explored."""

    run: SavedRun
    moe: MoE.Config
    steps: tuple[int | None, ...]  # whose weights can be had, oldest first; 0: the initial ones; None: those imported
    held_out: str  # some sentences of validation text

    @property
    def name(self) -> str:
        """Arm and seed of a study's trial, else the folder."""
        if self.run.imported or not self.run.config.arm:
            return self.run.folder.resolve().name
        return f"{self.run.config.arm}, seed {self.run.config.seed}"

    @property
    def most_tokens(self) -> int:
        """T of the training: the model has never seen a later position."""
        return min(self.run.longest, MOST_TOKENS)

    @property
    def moe_layers(self) -> list[int]:
        """Numbers of the layers that route, as in `routing.parquet`."""
        return list(self.run.model_config.moe_layers)


def open_subject(run: SavedRun) -> Subject:
    """Prepare a run to be explored. ValueError that says why where its routing of a text cannot be shown."""
    moe = run.model_config.moe
    if moe is None:
        raise ValueError(f"{run.folder}: a dense model routes nothing; explore needs a run with model/ffn=moe")
    if not run.imported and not run.steps:
        raise ValueError(f"{run.folder}: no valid checkpoint in {run.folder / 'checkpoints'}; train it first")
    tokenizer = run.tokenizer
    try:
        text = held_out(run.source, tokenizer)
    except ValueError as error:  # a text of the user's own needs the tokenizer alone
        print(f"warning: {error}", file=sys.stderr)
        text = NO_TEXT
    return Subject(run, moe, (None,) if run.imported else (0, *run.steps), text)


def held_out(source: Source, tokenizer: Tokenizer) -> str:
    """Whole sentences of one validation sequence, at most `SHOWN_TOKENS` tokens or T; whole words if none fits.

    Of the first sequences the one that gives most.
    """
    most, end = min(source.sequence_length, SHOWN_TOKENS), tokenizer.decode([tokenizer.end_id])
    sequences = source.validation().inputs[:SEQUENCES, : 2 * most].tolist()
    texts = [max(tokenizer.decode(ids).split(end), key=len).strip("\ufffd") for ids in sequences]
    whole = max((_fitting(_sentences(text), tokenizer, most) for text in texts), key=len)
    return whole or _fitting(texts[0].split()[1:-1], tokenizer, most) or texts[0][: most // 8]


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
def model_at(run: SavedRun, step: int | None) -> Transformer:
    """The run's model at one of `Subject.steps`, in evaluation mode."""
    return run.model_at(step)
