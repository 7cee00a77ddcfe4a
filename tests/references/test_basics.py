"""The specifications themselves, where another implementation or a special case can hold them to account."""

import torch

from tests import references
from tests.references.tolerances import FLOAT64, close


def test_the_loss_is_torchs() -> None:
    """Holds the specification of the loss, which other tests compare with, to another implementation."""
    logits, targets = references.random(2, 3, 7, seed=10), torch.tensor([[0, 6, 3], [1, 1, 5]])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    close(references.cross_entropy(logits, targets), expected, FLOAT64)


def test_a_block_is_pre_norm() -> None:
    """With branches that return 0 a block is the identity, so no norm stands on the residual."""
    x = references.random(1, 3, 4, seed=11)
    w = references.random(4, seed=12)
    assert torch.equal(references.block(x, (w, w), 1e-6, torch.zeros_like, torch.zeros_like), x)
    once = references.block(x, (w, w), 1e-6, lambda h: h, torch.zeros_like)
    close(once, x + references.rms_norm(x, w, 1e-6), FLOAT64)
    twice = references.block(x, (w, w), 1e-6, lambda h: h, lambda h: h)
    close(twice, once + references.rms_norm(once, w, 1e-6), FLOAT64)
