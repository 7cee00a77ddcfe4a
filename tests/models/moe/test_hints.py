"""What a layer may go by beside the hidden state: above all, what it draws."""

import torch

from dsv2.models.moe.hints import NONE, Hints

CPU = torch.device("cpu")


def test_a_seed_decides_what_is_drawn() -> None:
    """The same numbers in every call, others with another seed, and torch's generator stays where it was."""
    state = torch.get_rng_state()
    first, again, other = (Hints(seed=seed).uniform(2, 500, device=CPU) for seed in (2, 2, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_seed_torchs_generator_draws() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3, 4)
    torch.manual_seed(5)
    assert torch.equal(Hints().uniform(3, 4, device=CPU), expected)
    assert not torch.equal(Hints().uniform(3, 4, device=CPU), expected)


def test_numbers_are_uniform_from_zero_to_below_one() -> None:
    drawn = Hints(seed=1).uniform(100, 100, device=CPU)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (100, 100)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = torch.histc(drawn, bins=10, min=0, max=1)
    assert ((counts - 1000).abs() < 4 * 30).all()  # 4 standard deviations


def test_nothing_is_hinted_unless_said() -> None:
    assert Hints() == NONE
    assert not any(NONE)
