"""A step by a pipeline of one process is the step without a pipeline; tests/training/test_launch.py has several."""

import pytest
import torch

import dsv2
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.distributed.mesh import Mesh
from dsv2.training.module import Module
from dsv2.training.piped import PipedStep
from tests.references import ranks

ALPHAS = ["loss.expert=0.01", "loss.device=0.02", "loss.communication=0.03", "loss.z=0.001"]


def batch(seed: int) -> Batch:
    """Four sequences, of which the second half scores fewer tokens."""
    tokens = torch.randint(300, (4, 9), generator=torch.Generator().manual_seed(seed))
    targets = tokens[:, 1:].clone()
    targets[2:, :5] = NOT_SCORED
    return Batch(tokens[:, :-1], targets, None)


@pytest.mark.parametrize("schedule", ["1f1b", "zb_h1"])
def test_losses_gradients_and_routing_are_those_of_the_objective(quick: list[str], schedule: str) -> None:
    run = dsv2.load([*quick, *ALPHAS, "mesh.microbatches=2", f"mesh.schedule={schedule}"])
    plain, piped = Module(run), Module(run)
    with ranks.group_of_one():
        step = PipedStep(piped.model, Mesh.Config().build(), run)
        for seed in (1, 2):  # nothing is left of the first
            plain.zero_grad()
            losses, routings = plain.objective(batch(seed))
            losses.total.backward()
            own, chosen = step(batch(seed))
            torch.testing.assert_close(torch.stack(own), torch.stack(losses).detach(), rtol=1e-5, atol=1e-6)
            for mine, expected in zip(chosen, routings, strict=True):
                assert torch.equal(mine.experts, expected.experts)
                assert not mine.affinities.requires_grad
            for (name, weight), expected_weight in zip(
                piped.model.named_parameters(), plain.model.parameters(), strict=True
            ):
                torch.testing.assert_close(weight.grad, expected_weight.grad, rtol=1e-3, atol=1e-6, msg=name)
