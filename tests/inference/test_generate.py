"""`dsv2.generate`: greedy is the argmax without a cache, a row is as alone, sampling is a function of its seed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.inference.cache import ModelCache
from dsv2.models.transformer import Transformer


@pytest.fixture
def model() -> Transformer:
    built: Transformer = dsv2.load(["model.dim=16", "model.init_std=0.3"]).model.build()
    return built


def test_greedy_takes_the_likeliest_token_each_time(model: Transformer) -> None:
    prompt = torch.tensor([[5, 9, 2], [7, 7, 1]])
    text = dsv2.generate(model, prompt, max_new_tokens=6)
    assert text.shape == (2, 9)
    for length in range(3, 9):
        assert torch.equal(model.eval()(text[:, :length]).logits[:, -1].argmax(-1), text[:, length])


def test_rows_of_a_list_are_each_as_alone(model: Transformer) -> None:
    """Whatever the lengths, and with more prompts than rows; other prompts of the same lengths change nothing."""
    prompts = [torch.arange(length) for length in (1, 33, 4, 16, 17)]
    alone = [dsv2.generate(model, prompt[None], max_new_tokens=5)[0] for prompt in prompts]
    for batch_size in (1, 2, 64):
        rows = dsv2.generate(model, prompts, max_new_tokens=5, batch_size=batch_size)
        assert all(torch.equal(row, expected) for row, expected in zip(rows, alone, strict=True))
    other = dsv2.generate(model, [*prompts[:2], prompts[3] + 9], max_new_tokens=5)
    assert torch.equal(other[1], alone[1])


def test_sampling_follows_its_seed_and_the_mode_is_kept(model: Transformer) -> None:
    """A row is drawn by its seed and number alone; equal rows differ."""
    prompt = torch.tensor([[5, 9, 2]] * 3)
    first, same, other = (dsv2.generate(model, prompt, max_new_tokens=20, temperature=1.0, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert len({tuple(row) for row in torch.cat((first, other)).tolist()}) == 6
    assert torch.equal(dsv2.generate(model, prompt[:1], max_new_tokens=20, temperature=1.0)[0], first[0])
    around = [prompt[0], torch.tensor([1] * 40), prompt[2]]
    assert torch.equal(dsv2.generate(model, around, max_new_tokens=20, temperature=1.0)[2], first[2])
    assert model.training


def test_tokens_are_drawn_in_proportion_to_their_probability(model: Transformer) -> None:
    """1000 draws from logits of log (1, 2, 5) / 8; at temperature 1/2 probabilities are squared, (1, 4, 25) / 30."""

    def hidden(tokens: Tensor, *, caches: ModelCache, positions: Tensor | None = None) -> tuple[Tensor, tuple[()]]:
        caches.advance(caches.places(tokens.shape[1], positions))
        return torch.ones(*tokens.shape, 1), ()

    model.hidden = hidden  # type: ignore[method-assign, assignment]
    head = torch.full((2048, 1), -torch.inf)
    head[:3, 0] = torch.tensor([1.0, 2.0, 5.0]).log()
    model.head = torch.nn.Parameter(head)
    for settings, expected in (
        ({"temperature": 1.0}, [1 / 8, 2 / 8, 5 / 8]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 25 / 30]),
        ({"temperature": 1.0, "top_k": 2}, [0, 2 / 7, 5 / 7]),
        ({"temperature": 1.0, "top_p": 0.6}, [0, 0, 1]),
        ({"temperature": 1.0, "min_p": 0.3}, [0, 2 / 7, 5 / 7]),
    ):
        drawn = dsv2.generate(model, torch.zeros(1000, 1, dtype=torch.long), max_new_tokens=1, **settings)
        shares = torch.bincount(drawn[:, 1], minlength=3) / 1000
        assert shares.tolist() == pytest.approx(expected, abs=4 * 0.5 / 1000**0.5)  # four standard errors at most


def test_a_penalty_keeps_text_from_repeating(model: Transformer) -> None:
    prompt = torch.tensor([[5, 9, 2]])
    repeated = dsv2.generate(model, prompt, max_new_tokens=40)[0].tolist()
    varied = dsv2.generate(model, prompt, max_new_tokens=40, repetition_penalty=1e6)[0].tolist()
    assert len(set(repeated)) < len(set(varied)) == 43


def test_a_stop_id_ends_its_own_row(model: Transformer) -> None:
    prompts = [torch.tensor([5, 9, 2]), torch.tensor([7, 7])]
    whole = dsv2.generate(model, prompts, max_new_tokens=8)
    stop = int(whole[0][5])
    first, second = dsv2.generate(model, prompts, max_new_tokens=8, stop_ids=[stop, 2047])
    assert torch.equal(first, whole[0][: 1 + whole[0].tolist().index(stop, 3)])
    assert stop in whole[1] or torch.equal(second, whole[1])


def test_nothing_new_is_the_prompt(model: Transformer) -> None:
    prompt = torch.tensor([[5, 9, 2]])
    assert torch.equal(dsv2.generate(model, prompt, max_new_tokens=0), prompt)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"seed": -1}, "seed=-1 is not valid: 0 or more"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"stop_ids": [3]}, r"stop_ids=\[3\] is not valid: none, or prompts as a list"),
    ],
)
def test_settings_out_of_range_are_named(model: Transformer, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dsv2.generate(model, torch.tensor([[1]]), **{"max_new_tokens": 1} | arguments)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (lambda: torch.zeros(1, 0, dtype=torch.long), r"tokens has shape \(1, 0\)"),
        (lambda: torch.tensor([5, 9, 2]), r"tokens has shape \(3,\)"),
        (lambda: [torch.tensor([1]), torch.tensor([], dtype=torch.long)], r"tokens has shape \[\(1,\), \(0,\)\]"),
        (lambda: torch.tensor([[5000]]), "tokens has ids from 5000 to 5000: must be 0 to 2047"),
        (lambda: [], r"tokens has shape \[\]"),
    ],
)
def test_prompts_that_are_none_are_refused(model: Transformer, tokens: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dsv2.generate(model, tokens(), max_new_tokens=1)
