"""Token dropping over the sequences of all processes, as one process with the whole batch does it.

B sequences of a process, T tokens, E experts, K experts per token.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dsv2.distributed.shards import all_shares, own_share
from dsv2.models.moe.dropping import drop
from dsv2.models.moe.router import Routing


class WholeBatch:
    """Drops pairs by the budgets of the shares of all processes of a group, which have equally many sequences."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group

    def drop(
        self, routing: Routing, *, num_devices: int, capacity_factor: float, exempt: Tensor | None = None
    ) -> Tensor:
        """Return (B, T, K) bool, the pairs of this process that are dropped, by the rules of `models.moe.dropping`."""
        experts, num_experts = all_shares(routing.experts, self.group), routing.affinities.shape[-1]
        chosen = all_shares(routing.affinities.gather(-1, routing.experts), self.group)
        affinities = chosen.new_zeros(*experts.shape[:2], num_experts).scatter_(-1, experts, chosen)
        everyone = None if exempt is None else all_shares(exempt.to(torch.uint8), self.group).bool()
        dropped = drop(
            Routing(affinities, experts, chosen),
            num_devices=num_devices,
            capacity_factor=capacity_factor,
            exempt=everyone,
        )
        return own_share(dropped, self.group)
