"""What every source shares: counts of validation sequences and bytes, and a warning of repeated text."""

import math

import numpy as np
import pytest
import torch

from dsv2.config import ConfigError
from dsv2.data.corpora import Files
from dsv2.data.source import NOT_SCORED, bits_per_byte, count_bytes, repetition_warning, validation_sequences
from dsv2.data.synthetic import Recall


def test_repetition_is_said_beyond_four_times(corpus_config: Files.Config) -> None:
    source = corpus_config.open(sequence_length=16, seed=0, validation_tokens=64)
    assert source.train_tokens is not None
    assert repetition_warning(source, 4 * source.train_tokens) is None
    warning = repetition_warning(source, 5 * source.train_tokens)
    assert warning is not None
    assert f"repeat the corpus of {source.train_tokens:,} tokens 5.0 times; beyond 4 times" in warning


def test_endless_data_never_repeat() -> None:
    source = Recall.Config().open(sequence_length=32, seed=0, validation_tokens=64)
    assert repetition_warning(source, 10**12) is None


def test_bits_per_byte_need_bytes() -> None:
    with pytest.raises(ValueError, match="num_bytes=0: must be at least one byte"):
        bits_per_byte(1.0, 0)


def test_bits_per_byte_are_nats_over_bytes_in_bits() -> None:
    """8 bytes at 1 bit each cost 8 ln 2 nats, however many tokens they were."""
    assert bits_per_byte(8 * math.log(2), 8) == pytest.approx(1.0)


def test_only_scored_targets_have_bytes() -> None:
    token_bytes = np.array([0, 1, 5], dtype=np.int32)  # token 0 is no text
    targets = torch.tensor([[1, 2, NOT_SCORED], [0, NOT_SCORED, 2]])
    assert count_bytes(targets, token_bytes) == 1 + 5 + 0 + 5
    assert count_bytes(torch.full((2, 3), NOT_SCORED), token_bytes) == 0


def test_validation_takes_whole_sequences() -> None:
    assert validation_sequences(16, 64) == 4
    assert validation_sequences(16, 79) == 4
    with pytest.raises(ConfigError, match=r"^trainer\.sequence_length=0 is not valid: positive"):
        validation_sequences(0, 64)
    with pytest.raises(ConfigError, match=r"^trainer\.validation_tokens=15 is not valid: at least one sequence"):
        validation_sequences(16, 15)
