"""Synthetic tasks: what they show, what they ask for, and that the answer is right."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from dsv2.config import ConfigError
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.data.synthetic import HELD_OUT, Arithmetic, Copying, Recall, Task

TASKS = [Recall.Config(), Recall.Config(vocab_size=9, num_pairs=3), Copying.Config(), Arithmetic.Config()]


def opened(task: Task.Config, seed: int = 0, length: int = 64) -> Task:
    return task.open(sequence_length=length, seed=seed, validation_tokens=50 * length)


def rows(batch: Batch) -> list[tuple[list[int], list[bool]]]:
    """Each sequence's T + 1 tokens, and which of them are asked for."""
    asked = batch.targets != NOT_SCORED
    following = torch.where(asked[:, -1:], batch.targets[:, -1:], 0)  # unknown where it is not asked for
    tokens = torch.cat([batch.inputs, following], 1).tolist()
    return list(zip(tokens, [[False, *row] for row in asked.tolist()], strict=True))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__qualname__)
class TestEveryTask:
    def test_pure_function_of_seed_and_number(self, task: Task.Config) -> None:
        whole = opened(task).train(3, 30)
        part = opened(task).train(20, 5)
        assert torch.equal(part.inputs, whole.inputs[17:22])
        assert torch.equal(part.targets, whole.targets[17:22])
        assert not torch.equal(opened(task, seed=1).train(3, 30).inputs, whole.inputs)

    def test_validation_is_fixed_and_apart_from_training(self, task: Task.Config) -> None:
        first, second = opened(task, seed=0).validation(), opened(task, seed=1).validation()
        assert torch.equal(first.inputs, second.inputs)
        assert first.inputs.shape == (50, 64)
        for seed in range(3):
            assert not (opened(task, seed=seed).train(0, 50).inputs == first.inputs).all(1).any()

    def test_answers_are_the_next_inputs(self, task: Task.Config) -> None:
        batch = opened(task).train(0, 20)
        scored = batch.targets[:, :-1] != NOT_SCORED
        assert scored.any(1).all()
        assert torch.equal(batch.targets[:, :-1][scored], batch.inputs[:, 1:][scored])
        assert batch.inputs.min() >= 0
        assert batch.inputs.max() < task.vocab_size
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64

    def test_least_length_asks_for_an_answer(self, task: Task.Config) -> None:
        least = task.least_length - 1
        batch = opened(task, length=least).train(0, 4)
        assert ((batch.targets != NOT_SCORED).sum(1) == 1).all()
        with pytest.raises(ConfigError, match=rf"trainer\.sequence_length={least - 1} is not valid: at least {least}"):
            opened(task, length=least - 1)

    def test_there_is_no_text_and_no_end(self, task: Task.Config) -> None:
        source = opened(task)
        assert source.token_bytes is None
        assert source.tokenizer is None
        assert source.train_tokens is None
        assert source.domains == ()
        assert source.train(0, 1).domains is None
        assert source.identity == task.identity()


@pytest.mark.parametrize("length", [64, 63, 40])
@pytest.mark.parametrize("training", [True, False])
def test_recall_asks_for_what_was_shown(length: int, training: bool) -> None:
    task = opened(Recall.Config(), length=length)
    numbers = []
    for tokens, asked in rows(task.train(0, 400) if training else task.validation()):
        shown = list(zip(tokens[0:16:2], tokens[1:16:2], strict=True))
        value = dict(shown)
        numbers.append(len(value))
        assert shown == (shown[: len(value)] * 8)[:8]
        assert not any(asked[:16])
        queries = range(16, length, 2)
        assert [place for place in range(length + 1) if asked[place]] == [place + 1 for place in queries]
        assert all(tokens[place + 1] == value[tokens[place]] for place in queries)
    if training:
        assert min(numbers.count(pairs) for pairs in range(1, 9)) > 25  # 400 / 8 are expected, with a deviation of 6.6
    assert set(numbers) == (set(range(1, 9)) if training else {8})


def test_recall_cannot_be_had_by_ruling_out() -> None:
    """What was asked before says nothing of what is asked next."""
    again, later = 0, 0
    task = Recall.Config().open(sequence_length=64, seed=0, validation_tokens=400 * 64)
    for tokens, _ in rows(task.validation()):
        asked = tokens[16::2]
        later += len(asked) - 1
        again += sum(key == following for key, following in pairwise(asked))
    assert again / later == pytest.approx(1 / 8, abs=0.02)  # 9,200 draws: 0.02 is six standard errors


def test_copying_asks_for_the_second_writing() -> None:
    for tokens, asked in rows(opened(Copying.Config(length=5), length=35).train(0, 20)):
        for start in range(0, 36, 12):
            assert tokens[start : start + 5] == tokens[start + 6 : start + 11]
            assert 0 not in tokens[start : start + 5]
            assert tokens[start + 5] == 0
            assert asked[start : start + 12] == [False] * 6 + [True] * 5 + [False]


def test_additions_are_right() -> None:
    for tokens, asked in rows(opened(Arithmetic.Config(digits=2), length=39).train(0, 50)):
        for start in range(0, 40, 10):
            a, b = (10 * tokens[place] + tokens[place + 1] for place in (start, start + 3))
            assert tokens[start + 2] == 10
            assert tokens[start + 5] == 11
            low_first = tokens[start + 6 : start + 9]
            assert a + b == low_first[0] + 10 * low_first[1] + 100 * low_first[2]
            assert asked[start : start + 10] == [False] * 6 + [True] * 3 + [False]


def sums(batch: Batch, digits: int) -> set[tuple[int, int]]:
    """The terms of all whole sums, the smaller first."""
    starts = range(0, batch.inputs.shape[1] - 3 * digits - 3, 3 * digits + 4)
    powers = torch.tensor([10**place for place in reversed(range(digits))])
    found = set()
    for start in starts:
        first = batch.inputs[:, start : start + digits] @ powers
        second = batch.inputs[:, start + digits + 1 : start + 2 * digits + 1] @ powers
        found |= {(min(pair), max(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    return found


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_no_sum_of_validation_is_trained_on(digits: int) -> None:
    """As long as a study trains, 2 million tokens; with two digits every sum that may be asked then has been."""
    task = Arithmetic.Config(digits=digits).open(sequence_length=64, seed=0, validation_tokens=8192)
    trained, held_out = sums(task.train(0, 32_000), digits), sums(task.validation(), digits)
    assert held_out
    assert not held_out & trained
    if digits == 2:
        assert len(trained) / (100 * 101 / 2) == pytest.approx(1 - HELD_OUT, abs=0.02)


def test_sums_of_both_sides_are_spread_evenly() -> None:
    """Redrawing favours no digit: the last digits of the first term, in 12,000 sums, six deviations."""
    for held_out in (True, False):
        drawn = np.random.Philox(0).random_raw(24_000).reshape(100, 120, 2)
        last = Arithmetic.Config(digits=3)._sums(drawn, held_out=held_out)[..., 0] % 10
        assert np.bincount(last.ravel()) / 12_000 == pytest.approx(0.1, abs=0.0165)


@pytest.mark.parametrize("task", [Recall.Config(), Copying.Config()], ids=["recall", "copying"])
def test_no_sequence_of_validation_is_trained_on(task: Task.Config) -> None:
    opened_task = task.open(sequence_length=64, seed=0, validation_tokens=8192)
    trained = set(map(tuple, opened_task.train(0, 32_000).inputs.tolist()))
    assert trained.isdisjoint(map(tuple, opened_task.validation().inputs.tolist()))


def test_identity_follows_the_settings() -> None:
    assert Recall.Config().identity() == Recall.Config().identity()
    assert Recall.Config(num_pairs=4).identity() != Recall.Config().identity()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Recall.Config(vocab_size=9, num_pairs=5),
            "num_pairs=5 is not valid: 1 to 4, the number of keys in this",
        ),
        (lambda: Recall.Config(vocab_size=4), "vocab_size=4 is not valid: at least 5"),
        (lambda: Copying.Config(length=0), "length=0 is not valid: positive"),
        (lambda: Arithmetic.Config(vocab_size=12), "vocab_size=12 is not valid: at least 13"),
        (lambda: Arithmetic.Config(digits=19), "digits=19 is not valid: 1 to 18"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Task.Config], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
