"""Dispatch of tokens to experts that are all on this device, by one sort.

B batch, T tokens, d model width, E experts, K experts per token, N = B T K token-expert pairs.
"""

from typing import Any, NamedTuple

from torch import Tensor

from dsv2.kernels.permute import gather_rows, sort_by_expert, weighted_sum


class LocalTicket(NamedTuple):
    """What `combine` needs to return rows to their tokens."""

    order: Tensor  # (N,) pairs sorted by expert
    inverse: Tensor  # (N,) index of each pair in that order
    gates: Tensor  # (B, T, K) float32, 0 for dropped pairs


class LocalDispatch:
    """The dispatcher for a single device; `models.moe.dispatch.Dispatcher` documents its methods."""

    def dispatch(self, x: Tensor, routing: Any) -> tuple[Tensor, Tensor, LocalTicket]:
        top_k, num_experts = routing.experts.shape[-1], routing.affinities.shape[-1]
        order, inverse, counts = sort_by_expert(routing.experts.flatten(), num_experts)
        rows = gather_rows(x.flatten(0, 1), order, inverse, top_k)
        return rows, counts, LocalTicket(order, inverse, routing.live_gates)

    def combine(self, rows: Tensor, ticket: LocalTicket) -> Tensor:
        gates = ticket.gates.to(rows.dtype)
        return weighted_sum(rows, gates.flatten(0, 1), ticket.order, ticket.inverse).unflatten(0, gates.shape[:2])


LOCAL = LocalDispatch()
