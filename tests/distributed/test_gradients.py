"""Gradients of two processes: the mean over shares, and a norm in which every weight counts once."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dsv2.distributed.gradients import average, clip
from dsv2.distributed.mesh import Mesh
from dsv2.distributed.shards import Parts
from tests.references import ranks


def with_gradient(*values: float) -> nn.Parameter:
    weight = nn.Parameter(torch.zeros(len(values)))
    weight.grad = torch.tensor(values)
    return weight


def computed() -> dict[str, Any]:
    rank, results = dist.get_rank(), {}
    for name, layout in (("ep", Mesh.Config(ep=2)), ("dp", Mesh.Config(dp=2))):
        mesh = layout.build()
        # A gradient in one process alone, one that is missing, and one of experts.
        dense = {"some": with_gradient(8.0 if rank == 1 else 0.0), "none": nn.Parameter(torch.zeros(2))}
        parts = Parts(dense, {"experts": with_gradient(2.0 * (1 + rank))})
        average(parts, mesh)
        averaged = {key: weight.grad.clone() for part in parts for key, weight in part.items()}
        parts = Parts({"dense": with_gradient(3.0)}, {"experts": with_gradient(0.0, 4.0 if rank == 0 else 0.0)})
        if name == "dp":
            parts.experts["experts"].grad = torch.tensor([0.0, 4.0])
        norm = clip(parts, mesh, 1.0)
        clipped = [parts.dense["dense"].grad, parts.experts["experts"].grad]
        results[name] = {"averaged": averaged, "norm": norm, "clipped": clipped}
        alone = Parts({"dense": with_gradient(3.0, 4.0)}, {})
        results[name]["dense"] = clip(alone, mesh, 10.0), alone.dense["dense"].grad
    return results


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(computed, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("layout", "experts"), [("ep", (1, 2)), ("dp", (3, 3))])
def test_gradients_are_averaged_over_shares(
    two: list[dict[str, Any]], layout: str, experts: tuple[float, float]
) -> None:
    """Experts that are shared have seen the tokens of both: half of their gradient, not the mean with the other's."""
    for rank, result in enumerate(process[layout]["averaged"] for process in two):
        assert result["some"].tolist() == [4]
        assert result["none"].tolist() == [0, 0]
        assert result["experts"].tolist() == [experts[rank]]


@pytest.mark.parametrize("layout", ["ep", "dp"])
def test_the_norm_counts_every_weight_once(two: list[dict[str, Any]], layout: str) -> None:
    """3 in the dense weights and 4 in the experts of one process are 5: at a limit of 1, all are a fifth."""
    for rank, result in enumerate(process[layout] for process in two):
        assert result["norm"].item() == pytest.approx(5)
        dense, experts = result["clipped"]
        assert dense.tolist() == pytest.approx([0.6], rel=1e-5)
        own = [0.0, 0.8] if rank == 0 or layout == "dp" else [0.0, 0.0]
        assert experts.tolist() == pytest.approx(own, rel=1e-5)
        norm, below_the_limit = result["dense"]
        assert norm.item() == pytest.approx(5)
        assert below_the_limit.tolist() == [3, 4]
