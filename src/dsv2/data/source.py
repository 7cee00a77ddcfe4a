"""What every kind of data offers: batches that are a pure function of (seed, sequence number).

B sequences, T tokens per sequence, V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from dsv2.config import ConfigBase, ConfigError, Naming, class_name
from dsv2.kernels.cross_entropy import NOT_SCORED as NOT_SCORED

if TYPE_CHECKING:
    from dsv2.data.tokenizer import Tokenizer

MOST_REPETITIONS = 4  # passes over a corpus that are worth about as much as fresh text (Muennighoff et al. 2023)


class Batch(NamedTuple):
    """Sequences with what follows each of their tokens."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, NOT_SCORED where no prediction is asked for
    domains: Tensor | None  # (B, T) int8, index into `Source.domains` of each input's document; None: no domains


class Source(ABC):
    """An opened training stream with its fixed validation sequences."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase, ABC):
        vocab_size: int  # V: what the model's embedding has; a small corpus may leave rows unused

        @abstractmethod
        def identity(self, naming: Naming = class_name) -> dict[str, str]:
            """What the data are, for a run's fingerprint: hashes and versions. Cheap; trains no tokenizer."""

        @property
        def label(self) -> str:
            """What a message calls these data."""
            return type(self).__qualname__.partition(".")[0].lower()

        def anchored(self) -> Self:
            """The same data with absolute paths, so that they are found from any folder."""
            return self

        @abstractmethod
        def open(self, *, sequence_length: int, seed: int, validation_tokens: int) -> "Source":
            """Open for sequences of `sequence_length` tokens. `seed` orders training only, validation is the same
            for every seed: `validation_tokens` of it, in whole sequences, or all there are. Raises `ConfigError`.
            """

    vocab_size: int
    sequence_length: int  # T
    identity: dict[str, Any]  # JSON-ready: `Config.identity()`, and the trained tokenizer's hash where there is one
    train_tokens: int | None = None  # tokens in the training split; None: endless
    token_bytes: np.ndarray | None = None  # (V,) int32: bytes of text each token stands for; None: no text
    domains: tuple[str, ...] = ()
    tokenizer: "Tokenizer | None" = None

    def record(self) -> dict[str, Any]:
        """What a run keeps, JSON-ready, to know its data again."""
        return {"identity": self.identity}

    @abstractmethod
    def train(self, first: int, count: int) -> Batch:
        """Training sequences `first` to `first + count - 1`, numbered over the whole training: B = count."""

    @abstractmethod
    def validation(self) -> Batch:
        """All validation sequences, always the same."""


def validation_sequences(sequence_length: int, validation_tokens: int) -> int:
    """The number of validation sequences asked for. Raises `ConfigError`."""
    if sequence_length < 1:
        raise ConfigError("trainer.sequence_length", sequence_length, "positive")
    if validation_tokens < sequence_length:
        valid = f"at least one sequence, trainer.sequence_length={sequence_length}"
        raise ConfigError("trainer.validation_tokens", validation_tokens, valid)
    return validation_tokens // sequence_length


def count_bytes(targets: Tensor, token_bytes: np.ndarray) -> int:
    """Bytes of text that the scored targets (any shape, int64) stand for, by `Source.token_bytes` (V,)."""
    scored = targets[targets != NOT_SCORED].cpu()
    return int(torch.from_numpy(token_bytes).long()[scored].sum())


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total nats over the targets that stand for `num_bytes` bytes, as bits per byte: independent of the tokenizer.

    Raises ValueError if `num_bytes` is not positive.
    """
    if num_bytes <= 0:
        raise ValueError(f"num_bytes={num_bytes}: bits per byte need at least one byte of text")
    return nats / (math.log(2) * num_bytes)


def repetition_warning(source: Source, total_tokens: int) -> str | None:
    """A sentence for a run of `total_tokens` that sees its corpus more than four times, else None."""
    if source.train_tokens is None or total_tokens <= MOST_REPETITIONS * source.train_tokens:
        return None
    return (
        f"{total_tokens:,} training tokens see the corpus of {source.train_tokens:,} tokens "
        f"{total_tokens / source.train_tokens:.1f} times; beyond {MOST_REPETITIONS} times, repeated text "
        "teaches clearly less than fresh text: train on fewer tokens or take a larger corpus"
    )
