"""The training step: who is exempt from dropping, and what it hands to the callbacks."""

import pytest
import torch

import dsv2
from dsv2.data.source import Batch
from dsv2.study.plan import Plan
from dsv2.training.module import Module
from tests import references


class At(Module):
    """A module that believes to be at some step."""

    step = 0

    @property
    def global_step(self) -> int:
        return self.step


def module(quick: list[str], ratio: float = 0.5, *more: str, step: int = 0) -> At:
    found = At(dsv2.load([*quick, "model/ffn/dropping=device", f"model.ffn.dropping.exempt_ratio={ratio}", *more]))
    found.step = step
    return found


def test_exempt_sequences_depend_on_seed_and_step_alone(quick: list[str]) -> None:
    masks = {(seed, step): module(quick, 0.5, f"seed={seed}", step=step) for seed in (0, 1) for step in (0, 1, 2)}
    drawn = {key: tuple(found._exempt(64).tolist()) for key, found in masks.items()}
    assert len(set(drawn.values())) == 6
    torch.manual_seed(123)  # whatever the global generator did meanwhile
    before = torch.get_rng_state()
    assert {key: tuple(found._exempt(64).tolist()) for key, found in masks.items()} == drawn
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("ratio", "low", "high"), [(0.0, 0, 0), (0.1, 820, 1180), (1.0, 10_000, 10_000)])
def test_the_exempt_share(quick: list[str], ratio: float, low: int, high: int) -> None:
    """Of 10,000 sequences; the count at 10% has a standard deviation of 30, and lies within 6 of them."""
    assert low <= int(module(quick, ratio)._exempt(10_000).sum()) <= high


def test_the_share_of_steps_without_an_exempt_sequence(quick: list[str]) -> None:
    """0.9^8 = 43%, as the study says; of 2,000 steps, within four deviations."""
    found, without = module(quick, 0.1), 0
    for found.step in range(2000):
        without += not found._exempt(8).any()
    share = without / 2000
    assert share == pytest.approx(0.9**8, abs=0.044)
    assert f"{0.9**8:.0%} of the steps of 8 sequences have none (0.9^8)" in Plan("token_dropping", "tiny").file.shows_at


def test_nobody_is_exempt_where_nothing_is_dropped(quick: list[str]) -> None:
    assert Module(dsv2.load(quick))._exempt(4) is None
    assert Module(dsv2.load([*quick, "model/ffn=dense"]))._exempt(4) is None


def test_a_step_spares_the_exempt_and_hands_on_what_is_detached(quick: list[str]) -> None:
    """All tokens alike, so that a device is over its budget in every sequence that is not exempt."""
    found = module(quick, 0.5, "loss.expert=0.3", step=3)
    references.randomise(found.model, seed=0)
    found.train()
    batch = Batch(torch.full((8, 32), 7), torch.full((8, 32), 7), None)
    outputs = found.training_step(batch, 0)
    exempt = found._exempt(8)
    assert 0 < int(exempt.sum()) < 8
    losses, routings = outputs["step"]
    assert len(routings) == 1
    dropped = routings[0].dropped
    assert not dropped[exempt].any()
    assert dropped[~exempt].any()
    assert outputs["loss"].requires_grad
    assert not any(value.requires_grad for value in (*losses, routings[0].affinities, routings[0].gates))
    assert float(losses.expert) == pytest.approx(
        0.3 * float(references.expert_loss(routings[0].affinities, routings[0].experts)), rel=1e-5
    )


def test_the_weights_come_from_the_runs_seed(quick: list[str]) -> None:
    first, again, other = (Module(dsv2.load([*quick, f"seed={seed}"])).model.embedding for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
