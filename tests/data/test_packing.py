"""Packed text: every window once per epoch, in an order of its own, with targets, domains and bytes."""

import math

import numpy as np
import pytest
import torch

from dsv2.config import ConfigError
from dsv2.data.corpora import Files
from dsv2.data.packing import PackedText, fit_in, order
from dsv2.data.source import bits_per_byte, count_bytes

LENGTH = 16


@pytest.fixture
def source(corpus_config: Files.Config) -> PackedText:
    return opened(corpus_config)


def opened(corpus_config: Files.Config, seed: int = 0, validation_tokens: int = 20 * LENGTH) -> PackedText:
    return corpus_config.open(sequence_length=LENGTH, seed=seed, validation_tokens=validation_tokens)


def test_batches_are_a_pure_function_of_the_sequence_number(source: PackedText, corpus_config: Files.Config) -> None:
    whole = source.train(5, 40)
    again = opened(corpus_config)
    for first, count in ((30, 15), (5, 1), (6, 24)):  # out of order, from a fresh object, in other batch sizes
        part = again.train(first, count)
        for got, expected in zip(part[:3], whole[:3], strict=True):
            assert got is not None
            assert expected is not None
            assert torch.equal(got, expected[first - 5 : first - 5 + count])


def test_each_epoch_sees_every_window_once(source: PackedText) -> None:
    for epoch in range(3):
        windows = source.windows(epoch * source.num_windows, source.num_windows)
        assert sorted(windows) == list(range(source.num_windows))
    across = source.windows(source.num_windows - 3, 6)
    assert list(across[:3]) == list(order(0, 0, source.num_windows)[-3:])
    assert list(across[3:]) == list(order(0, 1, source.num_windows)[:3])


def test_an_epoch_covers_the_corpus(source: PackedText) -> None:
    batch = source.train(0, source.num_windows)
    windows = source.windows(0, source.num_windows)
    inputs = batch.inputs[torch.from_numpy(np.argsort(windows))].flatten()
    tokens = torch.from_numpy(source.store.train.tokens.astype(np.int64))
    assert torch.equal(inputs, tokens[: len(inputs)])
    assert len(tokens) - len(inputs) <= LENGTH
    assert torch.equal(batch.targets[:, :-1], batch.inputs[:, 1:])


def test_seeds_and_epochs_differ_and_the_order_is_pinned() -> None:
    orders = {tuple(order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert order(0, 0, 8).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]  # a change here silently changes every run


def test_validation_is_the_same_for_every_seed(corpus_config: Files.Config) -> None:
    first, second = opened(corpus_config, seed=0).validation(), opened(corpus_config, seed=1).validation()
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    assert first.inputs.shape == (20, LENGTH)


def test_validation_is_spread_evenly_and_never_repeats(corpus_config: Files.Config) -> None:
    source = opened(corpus_config)
    gaps = np.diff(source._validation_windows)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    everything = opened(corpus_config, validation_tokens=10**9).validation()
    assert len(everything.inputs) == (len(source.store.val.tokens) - 1) // LENGTH


def test_domains_are_those_of_the_inputs(source: PackedText) -> None:
    split = source.store.train
    lengths = np.diff([*split.starts, len(split.tokens)])
    of_position = np.repeat(split.domains, lengths)
    batch, windows = source.train(0, 10), source.windows(0, 10)
    assert batch.domains is not None
    assert batch.domains.dtype == torch.int8
    for row, window in zip(batch.domains, windows, strict=True):
        np.testing.assert_array_equal(row.numpy(), of_position[window * LENGTH : (window + 1) * LENGTH])


def test_bits_per_byte_count_the_bytes_of_the_text(source: PackedText) -> None:
    # Windows cut through characters, so a split's text is compared as a whole: one long row of targets.
    tokens = torch.from_numpy(source.store.val.tokens.astype(np.int64))[None]
    ends = source.store.manifest["splits"]["val"]["documents"]
    assert source.tokenizer is not None
    assert source.token_bytes is not None
    text = source.tokenizer.decode(tokens[0].tolist())
    assert count_bytes(tokens, source.token_bytes) == len(text.encode()) - ends * len("<|endoftext|>")
    assert count_bytes(tokens, source.token_bytes) == source.store.manifest["splits"]["val"]["bytes"]
    masked = tokens.clone()
    masked[0, 5:] = -100
    few = count_bytes(masked, source.token_bytes)
    assert few == source.token_bytes[tokens[0, :5]].sum()
    assert bits_per_byte(few * 8 * math.log(2), few) == pytest.approx(8.0)


def test_sequences_longer_than_the_corpus_are_refused(corpus_config: Files.Config) -> None:
    with pytest.raises(
        ConfigError, match=r"trainer\.sequence_length=1000000 is not valid: at most \d+, one less than the tokens of"
    ):
        corpus_config.open(sequence_length=1_000_000, seed=0, validation_tokens=1_000_000)
    with pytest.raises(ConfigError, match=r"trainer\.validation_tokens=8 is not valid: at least one sequence"):
        corpus_config.open(sequence_length=16, seed=0, validation_tokens=8)


def test_the_seed_orders_training(corpus_config: Files.Config) -> None:
    """Each seed reads the same windows in the order of its own, in every epoch."""
    first, second = opened(corpus_config, seed=0), opened(corpus_config, seed=1)
    for epoch in (0, 1):
        start, count = epoch * first.num_windows, first.num_windows
        for seed, source in ((0, first), (1, second)):
            assert source.windows(start, count).tolist() == order(seed, epoch, count).tolist()
        assert not torch.equal(first.train(start, count).inputs, second.train(start, count).inputs)


def test_validation_is_the_validation_split(corpus_config: Files.Config) -> None:
    """Of W windows n are read, window floor(i W / n) as the i-th, targets one token on."""
    source = opened(corpus_config, validation_tokens=5 * LENGTH)
    tokens = source.store.val.tokens.astype(np.int64)
    in_val = (len(tokens) - 1) // LENGTH
    batch = source.validation()
    assert batch.inputs.shape == (5, LENGTH)
    for i in range(5):
        at = i * in_val // 5 * LENGTH
        assert batch.inputs[i].tolist() == tokens[at : at + LENGTH].tolist()
        assert batch.targets[i].tolist() == tokens[at + 1 : at + 1 + LENGTH].tolist()


def test_a_document_begins_with_its_first_token(source: PackedText) -> None:
    """Over the whole split: an input has the domain of the last document that starts at or before it."""
    split = source.store.train
    batch, windows = source.train(0, source.num_windows), source.windows(0, source.num_windows)
    of_position, document = [], -1
    starts = set(split.starts.tolist())
    for position in range(len(split.tokens)):
        document += position in starts
        of_position.append(int(split.domains[document]))
    assert batch.domains is not None
    for row, window in zip(batch.domains.tolist(), windows.tolist(), strict=True):
        assert row == of_position[window * LENGTH : (window + 1) * LENGTH]


@pytest.mark.parametrize("seed", range(20))
def test_every_item_is_in_one_row_that_it_fits_in(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 33, size=draw.integers(1, 200))
    rows = fit_in(lengths, 32)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(1 <= lengths[row].sum() <= 32 for row in rows)
    assert len(rows) <= 1.25 * -(-lengths.sum() // 32) + 1, "best fit wastes less than a fifth"
    assert rows == fit_in(lengths, 32)


def test_rows_are_filled_as_by_hand() -> None:
    assert fit_in(np.array([3, 5, 2, 4, 6]), 6) == [[4], [1], [3, 2], [0]]
    assert fit_in(np.array([4, 4, 2, 2]), 6) == [[0, 3], [1, 2]]
    assert fit_in(np.zeros(0, dtype=np.int64), 6) == []
