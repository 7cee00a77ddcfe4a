"""Token dropping over the sequences of all processes, as one process with the whole batch does it.

B sequences of a process, T tokens, E experts, K experts per token.
"""

import torch
import torch.distributed as dist
from torch import Tensor

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
        experts, num_experts = self._all(routing.experts), routing.affinities.shape[-1]
        chosen = self._all(routing.affinities.detach().gather(-1, routing.experts))
        affinities = chosen.new_zeros(*experts.shape[:2], num_experts).scatter_(-1, experts, chosen)
        everyone = None if exempt is None else self._all(exempt.to(torch.uint8)).bool()
        dropped = drop(
            Routing(affinities, experts, chosen),
            num_devices=num_devices,
            capacity_factor=capacity_factor,
            exempt=everyone,
        )
        return dropped.chunk(dist.get_world_size(self.group))[dist.get_rank(self.group)]

    def _all(self, share: Tensor) -> Tensor:
        """Return what all processes have, in the order of the batch."""
        size = dist.get_world_size(self.group)
        whole = share.new_empty(size * len(share), *share.shape[1:])
        dist.all_gather(list(whole.chunk(size)), share.contiguous(), group=self.group)
        return whole
