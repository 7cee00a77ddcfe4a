"""The z-loss against a loop and by hand; its way through model and training is tested with them."""

import math

import pytest
import torch

from dsv2.models.moe.z_loss import z_loss
from tests import references
from tests.references import balancing
from tests.references.tolerances import FLOAT32, close, same_values_and_gradients


def test_by_hand() -> None:
    """Two logits of 0: (log 2)^2 per token, and 2 log 2 x 1/2 for each logit."""
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    loss = 0.001 * z_loss(logits)
    assert float(loss) == pytest.approx(0.480453e-3, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.flatten().tolist() == pytest.approx([0.693147e-3] * 2, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 50.0], ids=["small", "large"])
def test_values_and_gradients_are_those_of_a_loop(scale: float) -> None:
    leaves = {"logits": (scale * references.random(2, 7, 5, seed=1).detach()).requires_grad_()}
    own = references.twin(leaves)
    same_values_and_gradients(z_loss(leaves["logits"]), balancing.z_loss(own["logits"]), leaves, own, FLOAT32)


def test_large_logits_overflow_nothing() -> None:
    assert float(z_loss(torch.full((1, 1, 4), 1e4))) == pytest.approx((1e4 + math.log(4)) ** 2, rel=1e-6)
    low = torch.full((1, 1, 2), -300.0, dtype=torch.bfloat16)
    assert float(z_loss(low)) == pytest.approx((-300 + math.log(2)) ** 2, rel=1e-6)


def test_padding_does_not_count() -> None:
    """Three tokens and two of padding: the loss and every gradient are those of the three."""
    logits = references.random(1, 5, 4, seed=2).detach().requires_grad_()
    alone = logits.detach()[:, :3].clone().requires_grad_()
    real = torch.tensor([[True, True, True, False, False]])
    loss, expected = z_loss(logits, real), z_loss(alone)
    close(loss, expected, FLOAT32)
    (gradient,), (expected_gradient,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, alone)
    close(gradient[:, :3], expected_gradient, FLOAT32)
    assert not gradient[:, 3:].any()


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (2, 2, 2, 2), (3, 5)], ids=str)
def test_micro_batches_add_up(sizes: tuple[int, ...]) -> None:
    """Each by its share of the sequences gives the loss and the gradient of all."""
    logits = references.random(8, 3, 4, seed=3).detach().requires_grad_()
    whole = z_loss(logits)
    parts = sum(len(part) / 8 * z_loss(part) for part in logits.split(list(sizes)))
    close(parts, whole, FLOAT32)
    close(torch.autograd.grad(parts, logits)[0], torch.autograd.grad(whole, logits)[0], FLOAT32)
