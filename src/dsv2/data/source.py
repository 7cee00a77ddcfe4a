"""The interface of all data sources: batches are a pure function of seed and sequence number.

B sequences, T tokens per sequence, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dsv2.config import ConfigBase, ConfigError, Naming, class_name
from dsv2.kernels.cross_entropy import NOT_SCORED as NOT_SCORED

if TYPE_CHECKING:
    from dsv2.data.tokenizer import Tokenizer

MOST_REPETITIONS = 4  # epochs that are worth about as much as fresh text (Muennighoff et al. 2023)


class Batch(NamedTuple):
    """Input tokens and their targets."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, the next tokens; NOT_SCORED where there is no loss
    domains: Tensor | None  # (B, T) int8, index into `Source.domains` of each input's document; None: no domains
    # (B, T) int64, place of each input in its document, -1 for padding; documents see nothing of one another. None: a
    # sequence is one document, whatever it holds.
    positions: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with every tensor changed alike, as to some of the sequences."""
        domains, positions = (None if field is None else change(field) for field in self[2:])
        return Batch(change(self.inputs), change(self.targets), domains, positions)

    def rows(self, first: int, count: int) -> "Batch":
        """Return sequences `first` to `first + count - 1`, as far as there are so many."""
        return self.map(lambda field: field[first : first + count])


class Source(ABC):
    """An opened training stream with its fixed validation sequences."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase, ABC):
        vocab_size: int  # V, rows of the model's embedding; a small corpus may leave some unused

        @abstractmethod
        def identity(self, naming: Naming = class_name) -> dict[str, str]:
            """Identify the data for a run's fingerprint, by hashes and versions. Cheap; trains no tokenizer."""

        @property
        def label(self) -> str:
            """Name of the data in messages."""
            return type(self).__qualname__.partition(".")[0].lower()

        def anchored(self) -> Self:
            """Make paths absolute, so that the data are found from any working directory."""
            return self

        @abstractmethod
        def open(self, *, sequence_length: int, seed: int, validation_tokens: int) -> "Source":
            """Open for sequences of `sequence_length` tokens. Raises `ConfigError`.

            `seed` orders the training data. Validation is the same for every seed: `validation_tokens` in whole
            sequences, or all that there are.
            """

    vocab_size: int
    sequence_length: int  # T
    identity: dict[str, Any]  # JSON-ready: `Config.identity()`, and the hash of the tokenizer if there is one
    train_tokens: int | None = None  # tokens in the training split; None: endless
    token_bytes: np.ndarray | None = None  # (V,) int32, bytes of text per token; None: the data are not text
    domains: tuple[str, ...] = ()
    tokenizer: "Tokenizer | None" = None
    whole_answers: bool = False  # whether accuracy counts sequences, each with all of its scored tokens right

    def record(self) -> dict[str, Any]:
        """Return what a run stores to identify its data, JSON-ready."""
        return {"identity": self.identity}

    def overview(self, total_tokens: int) -> str | None:
        """Return what is worth saying before `total_tokens` of training, in a line; None for nothing."""
        return None

    @abstractmethod
    def train(self, first: int, count: int) -> Batch:
        """Return training sequences `first` to `first + count - 1`, numbered over the whole training; B = count."""

    @abstractmethod
    def validation(self) -> Batch:
        """Return all validation sequences, always the same."""


def validation_sequences(sequence_length: int, validation_tokens: int) -> int:
    """Return the number of validation sequences. Raises `ConfigError`."""
    if sequence_length < 1:
        raise ConfigError("trainer.sequence_length", sequence_length, "positive")
    if validation_tokens < sequence_length:
        valid = f"at least one sequence, trainer.sequence_length={sequence_length}"
        raise ConfigError("trainer.validation_tokens", validation_tokens, valid)
    return validation_tokens // sequence_length


def count_bytes(targets: Tensor, token_bytes: np.ndarray) -> int:
    """Count the bytes of text of the scored targets (int64, any shape), given `Source.token_bytes` (V,)."""
    scored = targets[targets != NOT_SCORED].cpu()
    return int(torch.from_numpy(token_bytes).long()[scored].sum())


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Convert the total nats over `num_bytes` bytes of text to bits per byte, which do not depend on the tokenizer.

    Raises ValueError if `num_bytes` is not positive.
    """
    if num_bytes <= 0:
        raise ValueError(f"num_bytes={num_bytes}: must be at least one byte of text")
    return nats / (math.log(2) * num_bytes)


def repetition_warning(source: Source, total_tokens: int) -> str | None:
    """Return a warning if `total_tokens` of training repeat the corpus more than four times, else None."""
    if source.train_tokens is None or total_tokens <= MOST_REPETITIONS * source.train_tokens:
        return None
    return (
        f"{total_tokens:,} training tokens repeat the corpus of {source.train_tokens:,} tokens "
        f"{total_tokens / source.train_tokens:.1f} times; beyond {MOST_REPETITIONS} times, repeated text "
        "is worth clearly less than fresh text: train on fewer tokens or use a larger corpus"
    )
