"""Terms of the reward, and what may be missing."""

import math

import pytest
import torch

from dsv2.alignment.rewards import RewardModels, Rewards
from dsv2.config import ConfigError
from dsv2.data.chats import Prompt
from dsv2.data.verification import Answer, Calls, Verifier
from dsv2.evaluation.following import Verified
from dsv2.evaluation.verifiers import Verdict
from dsv2.inference.replies import Reply
from dsv2.training.origin import Origin


def verified(verifier: Verifier, *texts: str, stopped: bool = True, score: float | None = 0.0) -> Verified:
    replies = [Reply([1], [0.0], "stop" if stopped else "length", text) for text in texts]
    return Verified(Prompt([1], verifier, 0), replies, [Verdict(score)] * len(texts))


def test_to_be_safe_is_to_refuse_exactly_what_is_to_be_refused() -> None:
    rewards = Rewards.Config()
    assert rewards.terms(verified(Answer("No"), "No", " No ", "k z"))["safe"].tolist() == [1, 1, 0]
    assert rewards.terms(verified(Answer("k z"), "No", "k z", "k"))["safe"].tolist() == [0, 1, 1]
    assert rewards.terms(verified(Calls({"f(1)": "2"}), "No", "x + 1"))["safe"].tolist() == [0, 1]
    other = Rewards.Config(refusal="I will not.")
    assert other.terms(verified(Answer("I will not."), "No", "I will not."))["safe"].tolist() == [0, 1]


def test_the_rule_is_one_line_that_ends() -> None:
    rewards = Rewards.Config()
    assert rewards.terms(verified(Answer("a"), "a", "", " ", "a\nb"))["rule"].tolist() == [1, 0, 0, 0]
    assert rewards.terms(verified(Answer("a"), "a", stopped=False))["rule"].tolist() == [0]


def test_coefficients_weigh_terms_and_unknown_ones_without_matter_not() -> None:
    each = verified(Answer("a"), "a", "b", score=None)
    rewards = Rewards.Config(correct=0.0, rule=0.5, helpful=2.0, safety=-1.0)
    learned = {"helpful": torch.tensor([1.0, 3.0]), "safety": torch.tensor([0.5, 0.25])}
    terms = rewards.terms(each, learned)
    assert terms["correct"].isnan().all()
    assert rewards.of(terms).tolist() == [0.5 + 2.0 - 0.5, 0.5 + 6.0 - 0.25]
    assert math.isnan(Rewards.Config().of(terms)[0].item())


def test_a_learned_term_needs_its_model() -> None:
    run = Origin.Config(run="somewhere", weights="0" * 64)
    Rewards.Config(helpful=1.0).require_models(RewardModels.Config(helpful=run))
    with pytest.raises(ConfigError, match=r"objective.rewards.safety=1.0 is not valid: 0 without objective.reward_mod"):
        Rewards.Config(helpful=1.0, safety=1.0).require_models(RewardModels.Config(helpful=run))
