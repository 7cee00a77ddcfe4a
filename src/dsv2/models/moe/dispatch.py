"""Bringing tokens to experts and back. Local is the first dispatcher; all-to-all ones share its two verbs.

B batch, T tokens, d model width, E experts, K experts a token, N = B T K token-expert pairs.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dsv2.kernels.permute import gather_rows, weighted_sum
from dsv2.models.moe.router import Routing


class Ticket(NamedTuple):
    """What `combine` needs to bring rows back to their tokens."""

    order: Tensor  # (N,) which pair stands at each place of the expert order
    inverse: Tensor  # (N,) the place of each pair
    gates: Tensor  # (B, T, K) float32, 0 for dropped pairs


class Dispatcher(Protocol):
    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Ticket]:
        """Rows of x (B, T, d) for every pair, sorted by expert (N, d), their counts per expert (E,), and a ticket."""

    def combine(self, rows: Tensor, ticket: Ticket) -> Tensor:
        """Experts' outputs (N, d), weighted by their gates and summed per token: (B, T, d)."""


class LocalDispatch:
    """All experts on this device: one sort."""

    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Ticket]:
        top_k, num_experts = routing.experts.shape[-1], routing.affinities.shape[-1]
        experts = routing.experts.flatten()
        order = experts.argsort(stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        counts = torch.bincount(experts, minlength=num_experts)
        gates = routing.gates if routing.dropped is None else routing.gates.masked_fill(routing.dropped, 0.0)
        rows = gather_rows(x.flatten(0, 1), order, inverse, top_k)
        return rows, counts, Ticket(order, inverse, gates)

    def combine(self, rows: Tensor, ticket: Ticket) -> Tensor:
        gates = ticket.gates.to(rows.dtype)
        return weighted_sum(rows, gates.flatten(0, 1), ticket.order, ticket.inverse).unflatten(0, gates.shape[:2])
