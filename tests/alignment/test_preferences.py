"""Pairs as by loops, both losses and the agreement from their definitions."""

import math

import pytest
import torch

from dsv2.alignment.preferences import Pairwise, Pointwise, Preferences, agreement
from dsv2.data.chats import Prompt
from dsv2.evaluation.following import Verified
from dsv2.evaluation.verifiers import Verdict
from dsv2.inference.replies import Reply


def group(prompt: list[int], *answers: list[int]) -> Verified:
    replies = [Reply(tokens, [0.0] * len(tokens), "stop", "") for tokens in answers]
    return Verified(Prompt(prompt, None, 0), replies, [Verdict(None)] * len(answers))


def test_pairs_are_of_one_prompt_and_of_different_rewards() -> None:
    groups = [group([1, 2], [5, 0], [6, 0], [5, 0], [7, 8, 0]), group([3], [5, 0], [6, 0], [9, 0], [4, 0])]
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.5], [2.0, 2.0, math.nan, 2.0]], dtype=torch.float64)
    preferences = Preferences.of(groups, rewards)
    texts = preferences.texts(torch.arange(len(preferences.lengths)))
    pairs = [(texts[better], texts[worse]) for better, worse in preferences.pairs.tolist()]
    right, half, wrong = [1, 2, 5, 0], [1, 2, 7, 8, 0], [1, 2, 6, 0]
    assert sorted(pairs) == sorted([(right, wrong), (right, half), (half, wrong)]), "equal answers are one"
    again = Preferences.from_state(preferences.state())
    assert torch.equal(again.pairs, preferences.pairs)
    assert again.texts(torch.tensor([3])) == [[3, 5, 0]]


def test_no_pairs_at_all() -> None:
    assert Preferences.of([group([1], [5, 0], [6, 0])], torch.ones(1, 2)).pairs.shape == (0, 2)


def test_losses_are_those_of_their_probabilities() -> None:
    better, worse = torch.tensor([1.0, -0.5]), torch.tensor([0.2, 0.3])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    pairs = -(math.log(sigmoid(0.8)) + math.log(sigmoid(-0.8))) / 2
    assert Pairwise.Config().loss(better, worse).item() == pytest.approx(pairs)
    points = [sigmoid(1.0), sigmoid(-0.5), 1 - sigmoid(0.2), 1 - sigmoid(0.3)]
    assert Pointwise.Config().loss(better, worse).item() == pytest.approx(-sum(map(math.log, points)) / 4)
    shifted = Pairwise.Config().loss(better + 5, worse + 5)
    assert shifted.item() == pytest.approx(pairs, rel=1e-5), "only differences count between the answers of a prompt"


def test_agreement_of_scores() -> None:
    margins = torch.tensor([2.0, 2.0, -2.0, 0.0])
    found = agreement(margins, torch.zeros(4))
    assert found.accuracy == 2.5 / 4
    confident = 1 / (1 + math.exp(-2))
    assert found.calibration == pytest.approx(3 / 4 * (confident - 2 / 3)), "and none of the tie"
    assert found.nats == pytest.approx((2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(2)) + math.log(2)) / 4)


def test_calibrated_scores_have_no_error() -> None:
    draw = torch.Generator().manual_seed(0)
    margins = torch.randn(200_000, generator=draw, dtype=torch.float64)
    agree = torch.rand(len(margins), generator=draw, dtype=torch.float64) < torch.sigmoid(margins)
    found = agreement(torch.where(agree, margins, -margins), torch.zeros(len(margins)))
    assert found.calibration < 0.005
    assert agreement(torch.where(agree, 3 * margins, -3 * margins), torch.zeros(len(margins))).calibration > 0.1
