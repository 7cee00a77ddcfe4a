"""Nats per token against the specification beside it: values, gradients, and targets that are not scored."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.cross_entropy import NOT_SCORED, head_nats, mean_nats, token_nats
from tests.references.kernels import agrees, normal
from tests.references.tolerances import FLOAT32, same_values_and_gradients


def example(batch: int, length: int, vocab: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits of a normal distribution, and targets of which about a third are not scored."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(batch, length, vocab, generator=generator)
    targets = torch.randint(vocab, (batch, length), generator=generator)
    return logits, targets.masked_fill(torch.rand(batch, length, generator=generator) < 0.3, NOT_SCORED)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (3, 5, 64)])
def test_values_and_gradients_are_those_of_the_specification(shape: tuple[int, int, int], scale: float) -> None:
    logits, targets = example(*shape, scale=scale)
    leaf, reference_leaf = (logits.clone().requires_grad_() for _ in range(2))
    nats, expected = token_nats(leaf, targets), reference.token_nats(reference_leaf, targets)
    assert nats.dtype == expected.dtype == torch.float32
    same_values_and_gradients(nats, expected, {"logits": leaf}, {"logits": reference_leaf}, FLOAT32)


def test_equal_logits_cost_the_log_of_the_vocabulary() -> None:
    nats = token_nats(torch.full((2, 3, 7), 5.0), torch.arange(6).view(2, 3))
    torch.testing.assert_close(nats, torch.full((2, 3), 7.0).log())


@pytest.mark.parametrize("function", [token_nats, reference.token_nats])
def test_what_is_not_scored_costs_nothing_and_moves_nothing(function) -> None:
    logits, targets = example(3, 5, 64)
    unscored = targets == NOT_SCORED
    assert 0 < unscored.sum() < targets.numel()
    logits.requires_grad_()
    nats = function(logits, targets)
    nats.sum().backward()
    assert (nats[unscored] == 0).all()
    assert (nats[~unscored] > 0).all()
    assert (logits.grad[unscored] == 0).all()
    assert (logits.grad[~unscored] != 0).all()


def test_bfloat16_logits_are_widened_first() -> None:
    logits, targets = example(2, 3, 7)
    assert torch.equal(token_nats(logits.bfloat16(), targets), token_nats(logits.bfloat16().float(), targets))


def test_axes_before_the_vocabulary_may_be_any_number() -> None:
    logits, targets = example(2, 3, 7)
    assert torch.equal(token_nats(logits[0], targets[0]), token_nats(logits, targets)[0])
    assert token_nats(logits[:0], targets[:0]).shape == (0, 3)


# ---- with the output head --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 1), (7, 5), (64, 33), (65, 9000), (200, 9000), (600, 2000)])
def test_the_mean_loss_of_a_head_is_that_of_its_logits(tokens: int, vocabulary: int) -> None:
    """Sizes on both sides of a chunk's 64 rows and half a million logits."""
    _, targets = example(1, tokens, vocabulary)
    targets[0, 0] = 0
    agrees(
        lambda x, w: head_nats(x, w, targets)[None],
        lambda x, w: reference.token_nats(x @ w.t(), targets).sum()[None] / (targets != NOT_SCORED).sum(),
        normal(1, tokens, 9),
        normal(vocabulary, 9, seed=1),
    )


@pytest.mark.usefixtures("kernels")
def test_large_logits_neither_overflow_nor_lose_precision() -> None:
    x, w, targets = torch.tensor([[100.0], [-100.0]]), torch.tensor([[3.0], [-3.0], [2.9]]), torch.tensor([2, 1])
    agrees(lambda x, w: head_nats(x, w, targets)[None], lambda x, w: mean_nats(x @ w.t(), targets)[None], x, w)


@pytest.mark.usefixtures("kernels")
def test_no_scored_target_has_no_mean() -> None:
    assert head_nats(normal(2, 3), normal(4, 3), torch.full((2,), NOT_SCORED)).isnan()


@pytest.mark.usefixtures("kernels")
def test_without_gradients_the_loss_is_the_same() -> None:
    x, w, targets = normal(70, 9), normal(33, 9, seed=1), torch.arange(70) % 33
    with torch.no_grad():
        quick = head_nats(x, w, targets)
    assert torch.equal(quick, head_nats(x, w.requires_grad_(), targets).detach())
