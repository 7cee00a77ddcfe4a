"""The loss of GRPO: against loops, by hand, and its penalty against exact gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2.alignment.policy import (
    K3,
    Centred,
    ConstantDivisor,
    EveryGroup,
    SequenceMean,
    Standardised,
    TokenMean,
    Tokens,
    VariedGroups,
    WeightedK3,
    has_variance,
    k3,
    policy_loss,
)
from tests.references import grpo

NAN = math.nan


def tokens_of(
    lengths: list[int],
    advantages: list[float],
    *,
    average: Any = None,
    old: Tensor | None = None,
    reference: Tensor | None = None,
) -> Tokens:
    """Tokens of answers with these lengths, in their order."""
    counts = torch.tensor(lengths)
    weights = (average or SequenceMean.Config()).weights(counts).repeat_interleave(counts)
    of_tokens = torch.tensor(advantages).repeat_interleave(counts)
    return Tokens(torch.zeros(sum(lengths)) if old is None else old, reference, of_tokens, weights)


# ---- against loops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_loss_and_gradient_are_those_of_loops(seed: int) -> None:
    """Ratios on both sides of the clip, advantages of both signs, answers of 1 to 9 tokens."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (8,), generator=draw).tolist()
    old = -3 * torch.rand(sum(lengths), generator=draw, dtype=torch.float64)
    now = (old + 0.4 * torch.randn(old.shape, generator=draw, dtype=torch.float64)).requires_grad_()
    reference = old + 0.6 * torch.randn(old.shape, generator=draw, dtype=torch.float64)
    rewards = torch.rand(8, generator=draw, dtype=torch.float64)
    given = grpo.advantages(rewards[:4].tolist()) + grpo.advantages(rewards[4:].tolist())
    mine = Standardised.Config().advantages(rewards.view(2, 4)).flatten()
    assert mine.tolist() == pytest.approx(given, rel=1e-6)

    parts = [each.split(lengths) for each in (now, old, reference)]
    expected = -grpo.objective(*parts, given, epsilon=0.2, beta=0.3)
    tokens = tokens_of(lengths, given, old=old, reference=reference)
    tokens = tokens._replace(
        advantages=torch.tensor(given, dtype=torch.float64).repeat_interleave(torch.tensor(lengths)),
        weights=tokens.weights.double(),
    )
    got = policy_loss(now, tokens, clip=0.2, penalty=K3.Config(beta=0.3))
    torch.testing.assert_close(got.loss, expected, rtol=1e-6, atol=1e-9)
    gradients = [torch.autograd.grad(loss, now)[0] for loss in (got.loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)

    ratio = (now - old).exp()
    sides = tokens.advantages
    beyond = ((ratio > 1.2) & (sides > 0)) | ((ratio < 0.8) & (sides < 0))
    assert got.clipped == beyond.sum() > 0
    assert got.shift == pytest.approx((now - old).abs().sum().item())
    assert got.nats == pytest.approx(-now.sum().item())
    assert got.penalty == pytest.approx(k3(now, reference).sum().item())


# ---- pitfall 5: denominators -----------------------------------------------------------------------------------------


def test_two_answers_of_2_and_8_tokens_by_hand() -> None:
    """Advantages +1 and -1, ratio 1, beta 0: loss 0, and -1/4 and +1/16 per token."""
    now = torch.zeros(10, requires_grad=True)
    loss = policy_loss(now, tokens_of([2, 8], [1.0, -1.0]), clip=0.2, penalty=None).loss
    (gradient,) = torch.autograd.grad(loss, now)
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert gradient.tolist() == pytest.approx([-1 / 4] * 2 + [1 / 16] * 8)
    assert Standardised.Config().advantages(torch.tensor([[1.0, 0.0]])).tolist() == [[1.0, -1.0]]


def test_a_token_mean_gives_another_loss() -> None:
    now = torch.zeros(10, requires_grad=True)
    tokens = tokens_of([2, 8], [1.0, -1.0], average=TokenMean.Config())
    loss = policy_loss(now, tokens, clip=0.2, penalty=None).loss
    assert loss.item() == pytest.approx(0.6)
    assert torch.autograd.grad(loss, now)[0].tolist() == pytest.approx([-1 / 10] * 2 + [1 / 10] * 8)


def test_a_constant_divisor_weighs_every_token_alike() -> None:
    weights = ConstantDivisor.Config(divisor=16).weights(torch.tensor([2, 8]))
    assert weights.tolist() == [1 / 32, 1 / 32]


@pytest.mark.parametrize("average", [SequenceMean.Config(), TokenMean.Config(), ConstantDivisor.Config(divisor=9.0)])
@pytest.mark.parametrize("parts", [[8], [4, 4], [1] * 8, [3, 5]])
def test_parts_of_a_step_sum_to_its_gradient(average: Any, parts: list[int]) -> None:
    """The weights are those of the step, whatever part of its answers is at hand."""
    draw = torch.Generator().manual_seed(0)
    lengths = [1, 7, 3, 9, 2, 2, 5, 4]
    old = -torch.rand(sum(lengths), generator=draw)
    now = (old + 0.3 * torch.randn(old.shape, generator=draw)).requires_grad_()
    whole = tokens_of(lengths, torch.randn(8, generator=draw).tolist(), average=average, old=old, reference=old - 0.1)
    expected = policy_loss(now, whole, clip=0.2, penalty=K3.Config()).loss
    (gradient,) = torch.autograd.grad(expected, now)
    answers = torch.arange(8).repeat_interleave(torch.tensor(lengths))
    summed, total, first = torch.zeros_like(gradient), 0.0, 0
    for count in parts:
        chosen = (answers >= first) & (answers < first + count)
        part = Tokens(*(None if column is None else column[chosen] for column in whole))
        loss = policy_loss(now[chosen], part, clip=0.2, penalty=K3.Config()).loss
        summed += torch.autograd.grad(loss, now)[0]
        total += loss.item()
        first += count
    torch.testing.assert_close(summed, gradient, rtol=1e-6, atol=1e-9)
    assert total == pytest.approx(expected.item(), rel=1e-6)


# ---- advantages ------------------------------------------------------------------------------------------------------


def test_groups_without_variance_have_no_advantage() -> None:
    """Also where rounding of the mean would leave one: three times 0.1."""
    rewards = torch.tensor([[0.1, 0.1, 0.1], [1.0, 0.0, 0.0], [NAN, NAN, NAN], [NAN, 1.0, 1.0]], dtype=torch.float64)
    assert has_variance(rewards).tolist() == [False, True, False, False]
    for kind in (Standardised.Config(), Centred.Config()):
        got = kind.advantages(rewards)
        assert got.dtype == torch.float32
        assert got[[0, 2, 3]].tolist() == [[0.0] * 3] * 3


def test_pitfall_10_what_could_not_be_judged_is_left_out() -> None:
    """8, 6 and a failure: a mean of 7, and advantages of +1 and -1."""
    rewards = torch.tensor([[8.0, 6.0, NAN]])
    assert Centred.Config().advantages(rewards).tolist() == [[1.0, -1.0, 0.0]]
    assert Standardised.Config().advantages(rewards).tolist() == [[1.0, -1.0, 0.0]]


def test_without_division_the_scale_of_rewards_remains() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert Centred.Config().advantages(rewards).tolist() == [[0.75, -0.25, -0.25, -0.25]]
    standardised = Standardised.Config().advantages(10 * rewards)
    torch.testing.assert_close(standardised, Standardised.Config().advantages(rewards))
    assert standardised[0].square().mean().item() == pytest.approx(1)


def test_groups_without_variance_can_be_left_out() -> None:
    varied = torch.tensor([True, False, True])
    assert EveryGroup.Config().kept(varied).tolist() == [True] * 3
    assert VariedGroups.Config().kept(varied).tolist() == [True, False, True]


def test_tokens_without_weight_have_no_gradient_whatever_their_ratio() -> None:
    now = torch.tensor([0.0, 200.0], requires_grad=True)
    tokens = Tokens(torch.zeros(2), torch.full((2,), -300.0), torch.ones(2), torch.tensor([1.0, 0.0]))
    loss = policy_loss(now, tokens, clip=0.2, penalty=K3.Config()).loss
    assert torch.autograd.grad(loss, now)[0].isfinite().all()
    assert loss.isfinite()


# ---- the penalty against exact gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_the_penalty_has_the_gradient_that_it_says(weighted: bool) -> None:
    """A policy over three answers of one token, drawn four times in exact proportion: 1/2, 1/4, 1/4."""
    logits = torch.tensor([math.log(2), 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    drawn = torch.tensor([0, 0, 1, 2])
    logs = logits.log_softmax(0)
    policy = logs.exp()
    assert policy.tolist() == pytest.approx([0.5, 0.25, 0.25])
    toward = (policy * (logs - reference)).sum()  # KL(pi || pi_ref)
    away = (reference.exp() * (reference - logs)).sum()  # KL(pi_ref || pi)

    now = logs[drawn]
    tokens = Tokens(now.detach(), reference[drawn], torch.zeros(4), torch.full((4,), 1 / 4, dtype=torch.float64))
    penalty = WeightedK3.Config(beta=1) if weighted else K3.Config(beta=1)
    loss = policy_loss(now, tokens, clip=0.2, penalty=penalty).loss
    assert loss.item() == pytest.approx(toward.item()), "the value is KL(pi || pi_ref)"
    expected = torch.autograd.grad(toward if weighted else away, logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected)


def test_k3_is_0_at_the_reference_and_positive_elsewhere() -> None:
    now = torch.linspace(-5, 0, 50)
    assert (k3(now, now) == 0).all()
    assert (k3(now, now - 0.3) > 0).all()
    assert (k3(now, now + 0.3) > 0).all()
    tiny = k3(torch.zeros(1), torch.full((1,), 1e-3))
    assert tiny.item() == pytest.approx(0.5e-6, rel=1e-2), "not lost in rounding"


@pytest.mark.parametrize(
    "make", [lambda: K3.Config(beta=0), lambda: WeightedK3.Config(beta=-1), lambda: ConstantDivisor.Config(divisor=0)]
)
def test_settings_are_positive(make: Any) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        make()
