"""Nats per token against the specification beside it: values, gradients, and targets that are not scored."""

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.cross_entropy import NOT_SCORED, token_nats
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
