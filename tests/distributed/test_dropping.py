"""Pairs dropped over the sequences of two processes are those that one process with the whole batch drops."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dsv2.distributed.dropping import WholeBatch
from dsv2.models.moe.dropping import drop
from dsv2.models.moe.router import Routing
from tests.references import ranks

EXEMPT = (None, torch.tensor([False, True, False, False]))


def routing() -> Routing:
    rng = torch.Generator().manual_seed(0)
    affinities = torch.rand(4, 6, 8, generator=rng).round(decimals=1)  # many ties
    affinities[:2, :, :2] += 1  # the first process's tokens fill device 0, where the second's have higher affinities
    affinities[2:, :, :2] += 2
    gates, experts = affinities.topk(3)
    return Routing(affinities, experts, gates)


def shared() -> list[Tensor]:
    rank, whole = dist.get_rank(), routing()
    own = whole.map(lambda tensor: tensor[2 * rank : 2 * rank + 2])
    dropper = WholeBatch(dist.new_group())
    return [
        dropper.drop(
            own, num_devices=4, capacity_factor=1.0, exempt=None if exempt is None else exempt[2 * rank : 2 * rank + 2]
        )
        for exempt in EXEMPT
    ]


def test_budgets_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    processes = ranks.run(shared, 2, tmp_path)
    for case, exempt in enumerate(EXEMPT):
        together = torch.cat([process[case] for process in processes])
        alone = drop(routing(), num_devices=4, capacity_factor=1.0, exempt=exempt)
        assert torch.equal(together, alone)
        parts = [routing().map(lambda tensor, first=first: tensor[first : first + 2]) for first in (0, 2)]
        apart = torch.cat([drop(part, num_devices=4, capacity_factor=1.0) for part in parts])
        assert not torch.equal(apart, alone)  # each with a budget of its own would drop others


@pytest.mark.parametrize("exempt", EXEMPT)
def test_one_process_drops_its_own(exempt: Tensor | None) -> None:
    with ranks.group_of_one() as group:
        dropped = WholeBatch(group).drop(routing(), num_devices=4, capacity_factor=0.5, exempt=exempt)
    assert torch.equal(dropped, drop(routing(), num_devices=4, capacity_factor=0.5, exempt=exempt))
