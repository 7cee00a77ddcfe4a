"""The processes of a run as a mesh: pipeline stages x replicas x shares of the experts.

The order of ranks keeps those together that exchange most: processes that share experts are neighbours, and a
pipeline's stages lie farthest apart.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch.distributed as dist

from dsv2.config import ConfigBase

MOST = 2**16  # processes
Dispatch = Literal["once_per_device", "all_to_all"]
ScheduleName = Literal["1f1b", "interleaved_1f1b", "zb_h1", "interleaved_zb", "zbv", "dualpipev"]


@dataclass(frozen=True)
class Mesh:
    """The place of this process in the mesh, and the groups that it belongs to."""

    ep_rank: int
    dp_rank: int
    pp_rank: int
    experts: dist.ProcessGroup  # that hold the routed experts between them
    replicas: dist.ProcessGroup  # that hold the same experts
    shares: dist.ProcessGroup  # that hold the same dense weights, and a share of every step's sequences each
    stages: dist.ProcessGroup  # that hold the layers between them, and train on the same share

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        ep: int = 1  # processes that hold the routed experts between them
        dp: int = 1  # replicas of these
        pp: int = 1  # times as many, which hold the layers between them
        dispatch: Dispatch = "once_per_device"  # how often a token is sent
        schedule: ScheduleName = "1f1b"
        microbatches: int | None = None  # that a share of a step is cut into, with pp above 1; None: 2 x pp
        timeout: float = 1800.0  # seconds after which a process that hears nothing of the others gives up

        def __post_init__(self) -> None:
            for name in ("ep", "dp", "pp"):
                self.require(1 <= getattr(self, name) <= MOST, name, f"1 to {MOST:,}")
            fits = self.microbatches is None or 1 <= self.microbatches <= MOST
            self.require(fits, "microbatches", f"1 to {MOST:,}, or null")
            self.require(0 < self.timeout <= 86_400, "timeout", "a positive number of seconds, at most 86,400")

        @property
        def size(self) -> int:
            """Number of processes."""
            return self.pp * self.dp * self.ep

        @property
        def axis(self) -> str:
            """The key that an error of the mesh's size names."""
            return f"mesh.{self._axis}"

        @property
        def largest(self) -> int:
            """The value of that key."""
            value: int = getattr(self, self._axis)
            return value

        @property
        def _axis(self) -> str:
            return next((name for name in ("ep", "dp", "pp") if getattr(self, name) > 1), "dp")

        @property
        def num_shares(self) -> int:
            """Number of equal shares of a step's sequences."""
            return self.dp * self.ep

        @property
        def num_microbatches(self) -> int:
            return 2 * self.pp if self.microbatches is None else self.microbatches

        def build(self) -> "Mesh":
            """Make the groups. All processes of the initialised default group call this; they are `size` many."""
            assert dist.get_world_size() == self.size, f"{dist.get_world_size()} processes, not {self.size}"
            rank, shares = dist.get_rank(), self.num_shares

            def own(groups: list[list[int]]) -> dist.ProcessGroup:
                group, _ = dist.new_subgroups_by_enumeration(groups, timeout=timedelta(seconds=self.timeout))
                assert group is not None
                return group

            firsts = range(0, self.size, shares)  # of each stage
            ep, dp, pp = range(self.ep), range(self.dp), range(self.pp)
            return Mesh(
                ep_rank=rank % self.ep,
                dp_rank=rank // self.ep % self.dp,
                pp_rank=rank // shares,
                experts=own([[first + self.ep * d + e for e in ep] for first in firsts for d in dp]),
                replicas=own([[first + self.ep * d + e for d in dp] for first in firsts for e in ep]),
                shares=own([list(range(first, first + shares)) for first in firsts]),
                stages=own([[shares * p + share for p in pp] for share in range(shares)]),
            )

    @property
    def num_shares(self) -> int:
        return dist.get_world_size(self.shares)

    @property
    def num_expert_shares(self) -> int:
        """Number of processes that hold the routed experts between them."""
        return dist.get_world_size(self.experts)

    @property
    def num_stages(self) -> int:
        """Number of processes that hold the layers between them."""
        return dist.get_world_size(self.stages)

    @property
    def share(self) -> int:
        """Which share of a step's sequences this process trains on, from 0."""
        return dist.get_rank(self.shares)
