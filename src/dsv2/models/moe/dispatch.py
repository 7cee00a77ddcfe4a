"""The dispatcher interface of MoE layers; dispatchers are passed in with the other `Ops`.

B batch, T tokens, d model width, E experts, N = B T K token-expert pairs.
"""

from typing import Any, Protocol

from torch import Tensor

from dsv2.models.moe.router import Routing


class Dispatcher(Protocol):
    """Sends tokens to their chosen experts, and the experts' outputs back.

    Shared experts are computed between the two calls, so that communication can overlap with them.
    """

    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Any]:
        """Return a row (N, d) of x (B, T, d) per pair, sorted by expert, the counts per expert (E,), and a ticket for
        `combine`."""

    def combine(self, rows: Tensor, ticket: Any) -> Tensor:
        """Sum the experts' outputs (N, d), weighted by their gates, per token: (B, T, d)."""
