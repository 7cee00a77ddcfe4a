"""Generation: greedy is the argmax of the uncached model, sampling is a function of its seed."""

import pytest
import torch

import dsv2
from dsv2.models.transformer import Output


@pytest.fixture
def model():
    return dsv2.load(["model.dim=16", "model.init_std=0.3"]).model.build()


def test_greedy_takes_the_likeliest_token_each_time(model):
    prompt = torch.tensor([[5, 9, 2], [7, 7, 1]])
    text = dsv2.generate(model, prompt, max_new_tokens=6)
    assert text.shape == (2, 9)
    for length in range(3, 9):
        assert torch.equal(model.eval()(text[:, :length]).logits[:, -1].argmax(-1), text[:, length])


def test_sampling_follows_its_seed_and_the_mode_is_kept(model):
    prompt = torch.tensor([[5, 9, 2]])
    first, same, other = (dsv2.generate(model, prompt, max_new_tokens=20, temperature=1.0, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert model.training


def test_tokens_are_drawn_in_proportion_to_their_probability():
    """2000 draws from logits of log (1, 2, 5) / 8; at temperature 1/2 probabilities are squared, (1, 4, 25) / 30."""
    log = torch.tensor([1.0, 2.0, 5.0]).log()
    config = dsv2.load(["model.dim=16", "model.num_layers=1", "model.num_dense_layers=1"]).model
    model = config.build()
    model.forward = lambda tokens, **_: Output(log.expand(*tokens.shape, 3), ())
    for temperature, expected in ((1.0, [1 / 8, 2 / 8, 5 / 8]), (0.5, [1 / 30, 4 / 30, 25 / 30])):
        drawn = dsv2.generate(model, torch.zeros(2000, 1, dtype=torch.long), max_new_tokens=1, temperature=temperature)
        shares = torch.bincount(drawn[:, 1], minlength=3) / 2000
        assert shares.tolist() == pytest.approx(expected, abs=4 * 0.5 / 2000**0.5)  # four standard errors at most


def test_nothing_new_is_the_prompt(model):
    prompt = torch.tensor([[5, 9, 2]])
    assert torch.equal(dsv2.generate(model, prompt, max_new_tokens=0), prompt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 1, "temperature": -0.5}, "temperature=-0.5"),
        ({"max_new_tokens": 1, "seed": -1}, "seed=-1: must be 0 or more"),
    ],
)
def test_mistakes_are_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        dsv2.generate(model, torch.tensor([[1]]), **arguments)
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 0\)"):
        dsv2.generate(model, torch.zeros(1, 0, dtype=torch.long), max_new_tokens=1)
    with pytest.raises(ValueError, match=r"tokens has shape \(3,\)"):
        dsv2.generate(model, torch.tensor([5, 9, 2]), max_new_tokens=1)
