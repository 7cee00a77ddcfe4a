"""The choice of tokens from logits: which may be chosen, how often, and what determines the draw."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.inference.sampling import Chooser, Sampling, restricted, uniforms

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()


def shares(logits: Tensor, seen: Tensor | None = None, draws: int = 4000, **settings: Any) -> list[float]:
    """How often each token is drawn from logits (V,)."""
    sampling = Sampling(**{"temperature": 1.0} | settings)
    chooser = Chooser([sampling] * draws, [sampling.stream(0)] * draws, CPU)
    drawn = chooser.choose(logits.expand(draws, -1), np.arange(draws), None if seen is None else seen.expand(draws, -1))
    return (torch.bincount(drawn, minlength=len(logits)) / draws).tolist()


def renormalised(*kept: int) -> list[float]:
    weights = [float(LOGITS[token].exp()) if token in kept else 0.0 for token in range(5)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, (0, 1, 2, 3, 4)),
        ({"top_k": 2}, (0, 1)),
        ({"top_k": 9}, (0, 1, 2, 3, 4)),
        ({"top_p": 0.69}, (0, 1)),
        ({"top_p": 0.71}, (0, 1, 2)),
        ({"top_p": 1e-9}, (0,)),
        ({"min_p": 0.19}, (0, 1, 2, 3)),
        ({"min_p": 0.21}, (0, 1, 2)),
        ({"min_p": 1.0}, (0,)),
        ({"top_k": 3, "top_p": 0.6}, (0, 1)),  # 0.5 / 0.85 is less than 0.6, and with the second it is more
        ({"top_k": 3, "top_p": 0.58}, (0,)),  # 0.5 alone is less than 0.58: of the three that remain, it is 0.588
        ({"top_k": 4, "top_p": 0.99, "min_p": 0.35}, (0, 1)),
    ],
)
def test_what_remains_is_drawn_in_proportion(settings: dict[str, Any], kept: tuple[int, ...]) -> None:
    assert shares(LOGITS, **settings) == pytest.approx(renormalised(*kept), abs=0.035)
    assert {token for token, share in enumerate(shares(LOGITS, **settings)) if share} == set(kept)


def test_limits_apply_at_the_temperature() -> None:
    """At temperature 1/2 the probabilities are squared: .25, .04 ... of .325, so that the first is .769 of them."""
    assert shares(LOGITS, temperature=0.5, top_p=0.76)[0] == 1
    assert shares(LOGITS, temperature=0.5, top_p=0.78)[1] == pytest.approx(0.04 / 0.29, abs=0.03)
    assert shares(LOGITS, temperature=0.5) == pytest.approx((LOGITS * 2).softmax(0).tolist(), abs=0.035)


def test_equals_remain_together() -> None:
    """So that the order in which equals are sorted, which varies with the batch, decides nothing."""
    logits = torch.tensor([0.0, 3.0, 3.0, 3.0, -1.0])
    assert shares(logits, top_k=2) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=0.035)
    assert shares(logits, top_p=0.1) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=0.035)


def test_the_penalty_makes_what_was_seen_less_likely_whatever_its_sign() -> None:
    logits, seen = torch.tensor([2.0, 1.5, -1.0, -1.5]), torch.tensor([[True, False, True, False]])
    expected = torch.tensor([1.0, 1.5, -2.0, -1.5]).softmax(0).tolist()
    assert shares(logits, seen, repetition_penalty=2.0) == pytest.approx(expected, abs=0.035)
    greedy = Chooser([Sampling(repetition_penalty=2.0)], [0], CPU)
    assert greedy.choose(logits[None], np.array([0]), seen).item() == 1
    assert greedy.choose(logits[None], np.array([0]), torch.zeros_like(seen)).item() == 0


@pytest.mark.parametrize("temperature", [1e-320, 1e-50, 1e-6, 1.0, 1e6, 1e300])
def test_every_temperature_samples_from_what_is_allowed(temperature: float) -> None:
    """Towards 0 it becomes greedy, towards infinity uniform; an id without a token is never drawn."""
    logits = restricted(torch.tensor([1.0, 2.0, 90.0, 3.0]), [0, 1, 3])
    drawn = shares(logits, temperature=temperature)
    assert drawn[2] == 0
    if temperature < 0.01:
        assert drawn[3] == 1
    elif temperature > 1000:
        assert [drawn[0], drawn[1], drawn[3]] == pytest.approx([1 / 3] * 3, abs=0.04)
    else:
        expected = torch.tensor([1.0, 2.0, 3.0]).softmax(0).tolist()
        assert [drawn[0], drawn[1], drawn[3]] == pytest.approx(expected, abs=0.04)


def test_each_row_has_its_own_settings_and_is_as_alone() -> None:
    """A greedy row, a cold one, limited ones and one with a penalty, beside one another and in any order."""
    samplings = [
        Sampling(),
        Sampling(temperature=0.3, seed=1),
        Sampling(temperature=2.0, top_k=3, seed=2),
        Sampling(temperature=1.5, top_p=0.4, seed=2),
        Sampling(temperature=1.0, min_p=0.2, repetition_penalty=1.7, seed=4),
        Sampling(repetition_penalty=3.0),
        Sampling(temperature=1.0),
    ]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 50, generator=generator)
    seen = torch.rand(7, 50, generator=generator) < 0.5
    counts = np.arange(7)

    def chosen(rows: list[int]) -> list[int]:
        own = [samplings[row] for row in rows]
        chooser = Chooser(own, [sampling.stream(0) for sampling in own], CPU)
        return chooser.choose(logits[rows], counts[rows], seen[rows]).tolist()

    alone = [chosen([row])[0] for row in range(7)]
    assert chosen([*range(7)]) == alone
    assert chosen([3, 1, 6]) == [alone[3], alone[1], alone[6]]
    assert alone[0] == logits[0].argmax()


def test_draws_are_uniform_and_of_seed_sample_and_place_alone() -> None:
    streams = np.array([Sampling(seed=seed).stream(sample) for seed in range(40) for sample in range(5)], np.uint64)
    assert len(set(streams.tolist())) == 200
    draws = np.stack([uniforms(streams, np.full(200, count)) for count in range(50)])
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.histogram(draws, bins=10, range=(0, 1))[0] == pytest.approx(1000, abs=4 * 30)  # four standard errors
    assert abs(np.corrcoef(draws[:, :20].T) - np.eye(20)).max() < 0.6  # of 50 draws: four standard errors
    assert uniforms(streams[3:4], np.array([7]))[0] == draws[7, 3]


def test_the_numbers_are_those_of_splitmix64() -> None:
    """The first outputs of its reference implementation for the state 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    drawn = uniforms(np.full(3, 1234567, np.uint64), np.arange(3))
    assert drawn.tolist() == [(value >> 12) / 2**52 for value in expected]


def test_log_probabilities_are_at_the_temperature_and_before_the_limits() -> None:
    """Logits (2, 0) at temperature 1/2: the second has -4.0181; greedy has those of temperature 1."""
    samplings = [Sampling(temperature=0.5, top_k=1, repetition_penalty=9.0), Sampling()]
    logs = Chooser(samplings, [0, 0], CPU).log_probabilities(torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
    assert logs[0, 1].item() == pytest.approx(-4.0181, abs=1e-4)
    assert logs[1].tolist() == pytest.approx(torch.tensor([2.0, 0.0]).log_softmax(0).tolist())


def test_weights_that_have_diverged_are_named() -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(ValueError, match="the model's logits are not numbers: its weights have diverged"):
            Chooser([sampling], [0], CPU).choose(torch.tensor([[1.0, math.nan]]), np.array([0]))


def test_only_the_given_ids_keep_their_logits() -> None:
    logits = torch.arange(10.0).view(2, 5)
    kept = restricted(logits, [1, 3, 7])  # a tokenizer may have more ids than the model
    assert torch.equal(kept[:, [1, 3]], logits[:, [1, 3]])
    assert (kept[:, [0, 2, 4]] == -torch.inf).all()
    assert restricted(logits, None) is logits
    assert restricted(logits, range(5)) is logits


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.5},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=rf"^{name}={value} is not valid: "):
        Sampling(**settings)
