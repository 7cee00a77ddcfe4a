"""Synthetic tasks without text: associative recall, copying, addition.

B sequences, T tokens per sequence, P pairs, Q queries, V vocabulary, D digits, R random numbers per sequence.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from dsv2.config import ConfigError, Naming, class_name, digest, plain
from dsv2.data.source import NOT_SCORED, Batch, Source, validation_sequences

HELD_OUT = 0.1  # share of all sums that only validation asks


class Task(Source):
    """An endless stream of sequences; sequence n is a pure function of (seed, n).

    Only answers are scored. Validation is a separate stream, the same for every seed. Its sums are never trained on;
    its other sequences are drawn like those of training, of which they repeat one only if there are few: by default,
    Recall has more than 10^20 and Copying 10^43.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        format: ClassVar[int] = 3  # increment when the same settings produce other sequences

        def identity(self, naming: Naming = class_name) -> dict[str, str]:
            return {"task": digest(plain(self, naming=naming)), "format": str(self.format)}

        def open(self, *, sequence_length: int, seed: int, validation_tokens: int) -> "Task":
            return Task(self, sequence_length=sequence_length, seed=seed, validation_tokens=validation_tokens)

        @property
        @abstractmethod
        def least_length(self) -> int:
            """Tokens of the shortest sequence (T + 1) that contains an answer."""

        @abstractmethod
        def draws(self, length: int) -> int:
            """Return R, the random numbers needed for a sequence of `length` tokens."""

        @abstractmethod
        def make(self, drawn: np.ndarray, length: int, *, training: bool) -> tuple[np.ndarray, np.ndarray]:
            """Build tokens (B, length) int64 and a mask of answers (length,) bool from drawn (B, R) uint64."""

    def __init__(self, config: Config, *, sequence_length: int, seed: int, validation_tokens: int) -> None:
        """Open the stream. Raises `ConfigError` if sequences are too short to contain an answer."""
        self._num_validation = validation_sequences(sequence_length, validation_tokens)
        if sequence_length + 1 < config.least_length:
            valid = f"at least {config.least_length - 1} for this task"
            raise ConfigError("trainer.sequence_length", sequence_length, valid)
        self.config, self.sequence_length, self.seed = config, sequence_length, seed
        self.vocab_size = config.vocab_size
        self.identity = config.identity()

    def train(self, first: int, count: int) -> Batch:
        return self._batch([0, self.seed], first, count, training=True)

    def validation(self) -> Batch:
        return self._batch([1, 0], 0, self._num_validation, training=False)

    def _batch(self, stream: list[int], first: int, count: int, *, training: bool) -> Batch:
        length = self.sequence_length + 1
        blocks = -(-self.config.draws(length) // 4)  # Philox generates blocks of 4 numbers and can skip ahead
        generator = np.random.Philox(np.random.SeedSequence(stream)).advance(first * blocks)
        drawn = generator.random_raw(count * blocks * 4).reshape(count, -1)
        tokens, answers = self.config.make(drawn, length, training=training)
        sequences = torch.from_numpy(tokens)
        targets = torch.where(torch.from_numpy(answers)[1:], sequences[:, 1:], NOT_SCORED)
        return Batch(sequences[:, :-1], targets, None)


class Recall(Task):
    """Associative recall: pairs `k v k v ...`, then queries `k v`, in which each v is scored.

    Keys are distinct, values need not be. Every query draws a pair anew until the sequence is full: if each pair were
    queried once, excluding the values already given would answer a third of the queries without any recall. A training
    sequence has 1 to P pairs, repeated to fill P slots, and validation always P: sequences with few pairs are learned
    first and lead to those with many; P alone may not be learned at all. Id 0 pads an odd end; the lower half of the
    other ids are keys, the upper half values.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        vocab_size: int = 64
        num_pairs: int = 8  # P

        def __post_init__(self) -> None:
            self.require(self.vocab_size >= 5, "vocab_size", "at least 5: padding, 2 keys, 2 values")
            self.require(
                0 < self.num_pairs <= self.half, "num_pairs", f"1 to {self.half}, the number of keys in this vocabulary"
            )

        @property
        def half(self) -> int:
            """Number of ids that are keys, and of those that are values."""
            return (self.vocab_size - 1) // 2

        @property
        def least_length(self) -> int:
            return 2 * self.num_pairs + 2

        def draws(self, length: int) -> int:
            return self.half + 1 + length // 2  # keys, number of pairs, P values and Q queries

        def make(self, drawn: np.ndarray, length: int, *, training: bool) -> tuple[np.ndarray, np.ndarray]:
            pairs = self.num_pairs
            for_keys, for_used, for_values, for_asked = np.split(
                drawn[:, : self.draws(length)], np.cumsum([self.half, 1, pairs]), axis=1
            )
            keys = 1 + _permutations(for_keys)[:, :pairs]  # (B, P)
            used = 1 + _below(for_used, pairs) if training else np.full((len(drawn), 1), pairs)  # (B, 1)
            values = 1 + self.half + _below(for_values, self.half)  # (B, P)
            asked = _below(for_asked, used)  # (B, Q)
            shown = np.concatenate([np.arange(pairs) % used, asked], axis=1)  # (B, P + Q)
            both = [np.take_along_axis(part, shown, axis=1) for part in (keys, values)]
            tokens = np.zeros((len(drawn), length), dtype=np.int64)
            tokens[:, : 2 * shown.shape[1]] = np.stack(both, axis=-1).reshape(len(drawn), -1)
            index = np.arange(length)
            return tokens, (index >= 2 * pairs) & (index < 2 * shown.shape[1]) & (index % 2 == 1)


class Copying(Task):
    """Copying: a random string, id 0, the string again, id 0, then another string, until the sequence is full.

    The second copy is scored.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        vocab_size: int = 64
        length: int = 24  # tokens per string

        def __post_init__(self) -> None:
            self.require(self.vocab_size >= 3, "vocab_size", "at least 3: the separator and 2 symbols")
            self.require(self.length > 0, "length", "positive")

        @property
        def least_length(self) -> int:
            return self.length + 2

        def draws(self, length: int) -> int:
            return self.length * -(-length // (2 * self.length + 2))

        def make(self, drawn: np.ndarray, length: int, *, training: bool) -> tuple[np.ndarray, np.ndarray]:
            strings = 1 + _below(drawn[:, : self.draws(length)], self.vocab_size - 1)
            half = np.pad(strings.reshape(len(drawn), -1, self.length), ((0, 0), (0, 0), (0, 1)))  # (B, n, length + 1)
            index = np.arange(length) % (2 * self.length + 2)
            tokens = np.concatenate([half, half], axis=-1).reshape(len(drawn), -1)[:, :length]
            return tokens, (index > self.length) & (index < 2 * self.length + 1)


class Arithmetic(Task):
    """Additions `a+b=c;` of D-digit numbers with leading zeros, until the sequence is full; the digits of c are scored.

    c has D + 1 digits, the lowest first, so that each follows from the digits before it. Ids 0 to 9 are digits, 10 is
    +, 11 is =, 12 is ;. A hash of the two terms, in any order, decides whether training or validation asks a sum.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        format: ClassVar[int] = 4
        vocab_size: int = 13
        digits: int = 3  # D

        def __post_init__(self) -> None:
            self.require(self.vocab_size >= 13, "vocab_size", "at least 13: ten digits and + = ;")
            self.require(0 < self.digits <= 18, "digits", "1 to 18")

        @property
        def least_length(self) -> int:
            return 2 * self.digits + 3

        @property
        def _period(self) -> int:
            return 3 * self.digits + 4

        def draws(self, length: int) -> int:
            return 2 * -(-length // self._period)

        def make(self, drawn: np.ndarray, length: int, *, training: bool) -> tuple[np.ndarray, np.ndarray]:
            digits = self.digits
            terms = self._sums(drawn[:, : self.draws(length)].reshape(len(drawn), -1, 2), held_out=not training)
            high_first = 10 ** np.arange(digits - 1, -1, -1)
            written = terms[..., None] // high_first % 10  # (B, n, 2, D)
            answer = terms.sum(-1)[..., None] // 10 ** np.arange(digits + 1) % 10  # (B, n, D + 1)
            sign = np.ones((*terms.shape[:2], 1), dtype=np.int64)
            parts = [written[:, :, 0], 10 * sign, written[:, :, 1], 11 * sign, answer, 12 * sign]
            index = np.arange(length) % self._period
            tokens = np.concatenate(parts, axis=-1).reshape(len(drawn), -1)[:, :length]
            return tokens, (index >= 2 * digits + 2) & (index < self._period - 1)

        def _sums(self, drawn: np.ndarray, *, held_out: bool) -> np.ndarray:
            """Map uint64 (B, n, 2) to the terms of sums of one side, int64; those of the other are drawn anew."""
            terms = _below(drawn, 10**self.digits)
            while (wrong := _is_held_out(terms) != held_out).any():
                drawn = np.where(wrong[..., None], _mixed(drawn), drawn)
                terms = _below(drawn, 10**self.digits)
            return terms


def _is_held_out(terms: np.ndarray) -> np.ndarray:
    """Decide for sums (..., 2) int64, the same for a + b and b + a, whether they are for validation, (...) bool."""
    smaller, larger = np.sort(terms, axis=-1).astype(np.uint64).transpose()
    return (_mixed(_mixed(smaller) + larger) < np.uint64(HELD_OUT * 2**64)).transpose()


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return the next number of SplitMix64 for each uint64, a bijection that looks random."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _below(drawn: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """Map uint64 to integers from 0 to limit - 1, int64."""
    return (drawn % np.asarray(limit, np.uint64)).astype(np.int64)


def _permutations(drawn: np.ndarray) -> np.ndarray:
    """Return a permutation of the last dimension for each row, int64."""
    return np.argsort(drawn, axis=-1, kind="stable")
