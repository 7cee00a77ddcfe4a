"""The choice of a token from logits: which ids may be chosen, and how often."""

import math

import pytest
import torch

from dsv2.inference.sampling import choose, restricted


def test_only_the_given_ids_keep_their_logits() -> None:
    logits = torch.arange(10.0).view(2, 5)
    kept = restricted(logits, [1, 3, 7])  # a tokenizer may have more ids than the model
    assert torch.equal(kept[:, [1, 3]], logits[:, [1, 3]])
    assert (kept[:, [0, 2, 4]] == -torch.inf).all()
    assert restricted(logits, None) is logits
    assert restricted(logits, range(5)) is logits


@pytest.mark.parametrize("temperature", [1e-320, 1e-50, 1e-6, 1.0, 1e6, 1e300, math.inf])
def test_every_temperature_samples_from_what_is_allowed(temperature: float) -> None:
    """Towards 0 it becomes greedy, towards infinity uniform; an id without a token is never drawn."""
    logits = restricted(torch.tensor([1.0, 2.0, 90.0, 3.0]), [0, 1, 3]).expand(4000, 4)
    drawn = torch.bincount(choose(logits, temperature, torch.Generator().manual_seed(0)), minlength=4) / 4000
    assert drawn[2] == 0
    if temperature < 0.01:
        assert drawn[3] == 1
    elif temperature > 1000:
        assert drawn[[0, 1, 3]].tolist() == pytest.approx([1 / 3] * 3, abs=0.04)
    else:
        expected = torch.tensor([1.0, 2.0, 3.0]).softmax(0).tolist()
        assert drawn[[0, 1, 3]].tolist() == pytest.approx(expected, abs=0.04)
