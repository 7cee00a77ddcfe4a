"""The place of each process in the mesh, and sizes that make none."""

from typing import Any

import pytest
import torch.distributed as dist

from dsv2.config import ConfigError
from dsv2.distributed.mesh import Mesh
from tests.references import ranks


def test_one_process_is_alone_on_every_axis() -> None:
    with ranks.group_of_one():
        mesh = Mesh.Config().build()
        assert (mesh.ep_rank, mesh.dp_rank, mesh.pp_rank, mesh.share) == (0, 0, 0, 0)
        assert mesh.num_shares == mesh.num_expert_shares == mesh.num_stages == 1


def members() -> list[dict[str, Any]]:
    found = []
    for layout in (Mesh.Config(ep=2, dp=2), Mesh.Config(ep=2, pp=2)):
        mesh = layout.build()
        groups = {"experts": mesh.experts, "replicas": mesh.replicas, "shares": mesh.shares, "stages": mesh.stages}
        own = {name: dist.get_process_group_ranks(group) for name, group in groups.items()}
        found.append(own | {"place": (mesh.pp_rank, mesh.dp_rank, mesh.ep_rank), "share": mesh.share})
    return found


@pytest.mark.slow
def test_neighbours_share_experts(tmp_path) -> None:
    for rank, (flat, deep) in enumerate(ranks.run(members, 4, tmp_path)):
        pair, across = [rank - rank % 2, rank - rank % 2 + 1], [rank % 2, rank % 2 + 2]
        assert flat == {
            "place": (0, *divmod(rank, 2)),
            "share": rank,
            "experts": pair,
            "replicas": across,
            "shares": [0, 1, 2, 3],
            "stages": [rank],
        }
        assert deep == {
            "place": (rank // 2, 0, rank % 2),
            "share": rank % 2,
            "experts": pair,
            "replicas": [rank],
            "shares": pair,
            "stages": across,
        }


@pytest.mark.parametrize(("field", "value"), [("ep", 0), ("dp", -1), ("ep", 2**17), ("timeout", 0.0), ("timeout", 1e9)])
def test_sizes_that_make_no_mesh(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field}={value}"):
        Mesh.Config(**{field: value})


def test_an_error_of_the_size_names_an_axis_that_is_used() -> None:
    assert (Mesh.Config(ep=2, dp=3).axis, Mesh.Config(ep=2, dp=3).largest) == ("mesh.ep", 2)
    assert (Mesh.Config(dp=3).axis, Mesh.Config(dp=3).largest) == ("mesh.dp", 3)
    assert Mesh.Config(ep=2, dp=3).size == Mesh.Config(ep=2, dp=3).num_shares == 6
