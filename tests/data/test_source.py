import pytest

from dsv2.data.corpora import Files
from dsv2.data.source import bits_per_byte, repetition_warning
from dsv2.data.synthetic import Recall


def test_repetition_is_said_beyond_four_times(corpus_config: Files.Config) -> None:
    source = corpus_config.open(sequence_length=16, seed=0, validation_tokens=64)
    assert source.train_tokens is not None
    assert repetition_warning(source, 4 * source.train_tokens) is None
    warning = repetition_warning(source, 5 * source.train_tokens)
    assert warning is not None
    assert f"see the corpus of {source.train_tokens:,} tokens 5.0 times; beyond 4 times" in warning


def test_endless_data_never_repeat() -> None:
    source = Recall.Config().open(sequence_length=32, seed=0, validation_tokens=64)
    assert repetition_warning(source, 10**12) is None


def test_no_bytes() -> None:
    with pytest.raises(ValueError, match="num_bytes=0: bits per byte need at least one byte"):
        bits_per_byte(1.0, 0)
