"""In-context copying: what the strings are made of, and what a model that copies and one that guesses get."""

import math

import numpy as np
import pytest
import torch

from dsv2.config import ConfigError
from dsv2.evaluation import copying
from dsv2.metrics import chance
from tests.references.stubs import Stub, uniform
from tests.references.tolerances import FLOAT32


def test_strings_are_different_frequent_tokens() -> None:
    tokens = np.repeat(np.arange(100), np.arange(100))  # token n stands n times
    shown = copying.strings(np.append(tokens, [0] * 1000), count=5, length=20)  # <|endoftext|> most of all
    assert shown.shape == (5, 20)
    assert shown.min() >= 100 - copying.SYMBOLS
    assert all(len(set(row)) == 20 for row in shown.tolist())
    assert len(np.unique(shown)) > 40
    with pytest.raises(ConfigError, match="copying_length=65 is not valid: at most 64"):
        copying.strings(tokens, count=5, length=65)


def test_ids_without_a_token_are_not_shown() -> None:
    """Few tokens occur, so that others are drawn too; of 130 ids, the even ones have a token, and 2 ends texts."""
    shown = copying.strings(np.array([4, 4, 129]), count=50, length=20, end_id=2, ids=np.arange(0, 130, 2))
    assert (shown % 2 == 0).all()
    assert 2 not in shown


def test_strings_are_a_pure_function_of_their_arguments() -> None:
    tokens = np.arange(80)
    assert np.array_equal(copying.strings(tokens, count=4, length=6), copying.strings(tokens, count=4, length=6))
    assert not np.array_equal(
        copying.strings(tokens, count=4, length=7)[:, :6], copying.strings(tokens, count=4, length=6)
    )


def test_the_second_copy_is_scored() -> None:
    """A model that repeats what followed the last time is perfect there; one that knows nothing gains nothing."""
    shown = copying.strings(np.arange(80), count=4, length=6)

    def induction(read: tuple[int, ...]) -> torch.Tensor:
        logits = torch.zeros(80)
        if read[-1] in read[:-1]:
            logits[read[read.index(read[-1]) + 1]] = math.log(79)
        return logits

    copied = copying.copy(Stub(induction), shown, batch_tokens=30)
    assert copied.accuracy == 1
    assert copied.gain == pytest.approx(math.log(80) - math.log(2), rel=FLOAT32)  # of 1 / 80, a half
    assert copying.copy(uniform(80), shown, batch_tokens=30).gain == pytest.approx(0, abs=FLOAT32)


def test_guessing_a_symbol_is_right_by_chance() -> None:
    """The stated chance, within four standard deviations."""
    shown, draw = copying.strings(np.arange(1, 65), count=100, length=40), torch.Generator().manual_seed(0)
    hidden = torch.tensor([-9.0] + [0.0] * copying.SYMBOLS)  # <|endoftext|> is no symbol
    guessing = Stub(lambda _: hidden + torch.rand(65, generator=draw))
    copied = copying.copy(guessing, shown, batch_tokens=10**6)
    expected = chance("bench/copying")
    assert expected == 1 / copying.SYMBOLS
    assert abs(copied.accuracy - expected) < 4 * math.sqrt(expected / 3900)
