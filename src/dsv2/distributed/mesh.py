"""The processes of a run as a mesh: pipeline stages x replicas x shares of the experts.

The order of ranks is that of section 3.1.3's costs: processes that share experts, which exchange most, are neighbours.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch.distributed as dist

from dsv2.config import ConfigBase

MOST = 2**16  # processes


@dataclass(frozen=True)
class Mesh:
    """The place of this process in the mesh, and the groups that it belongs to."""

    ep_rank: int
    dp_rank: int
    experts: dist.ProcessGroup  # that hold the routed experts between them
    replicas: dist.ProcessGroup  # that hold the same experts
    shares: dist.ProcessGroup  # that hold the same dense weights, and a share of every step's sequences each

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        ep: int = 1  # processes that hold the routed experts between them
        dp: int = 1  # replicas of these
        dispatch: Literal["once_per_device", "all_to_all"] = "once_per_device"  # how often a token is sent
        timeout: float = 1800.0  # seconds after which a process that hears nothing of the others gives up

        def __post_init__(self) -> None:
            for name in ("ep", "dp"):
                self.require(1 <= getattr(self, name) <= MOST, name, f"1 to {MOST:,}")
            self.require(0 < self.timeout <= 86_400, "timeout", "a positive number of seconds, at most 86,400")

        @property
        def size(self) -> int:
            """Number of processes."""
            return self.dp * self.ep

        @property
        def axis(self) -> str:
            """The key that an error of the mesh's size names."""
            return "mesh.ep" if self.ep > 1 else "mesh.dp"

        @property
        def largest(self) -> int:
            """The value of that key."""
            return self.ep if self.ep > 1 else self.dp

        @property
        def num_shares(self) -> int:
            """Number of equal shares of a step's sequences."""
            return self.dp * self.ep

        def build(self) -> "Mesh":
            """Make the groups. All processes of the initialised default group call this; they are `size` many."""
            assert dist.get_world_size() == self.size, f"{dist.get_world_size()} processes, not {self.size}"
            rank = dist.get_rank()
            replicas = [[ep + self.ep * dp for dp in range(self.dp)] for ep in range(self.ep)]
            experts = [[ep + self.ep * dp for ep in range(self.ep)] for dp in range(self.dp)]

            def own(groups: list[list[int]]) -> dist.ProcessGroup:
                group, _ = dist.new_subgroups_by_enumeration(groups, timeout=timedelta(seconds=self.timeout))
                assert group is not None
                return group

            return Mesh(rank % self.ep, rank // self.ep, own(experts), own(replicas), own([list(range(self.size))]))

    @property
    def num_shares(self) -> int:
        return dist.get_world_size(self.shares)

    @property
    def num_expert_shares(self) -> int:
        """Number of processes that hold the routed experts between them."""
        return dist.get_world_size(self.experts)

    @property
    def share(self) -> int:
        """Which share of a step's sequences this process trains on, from 0."""
        return dist.get_rank(self.shares)
