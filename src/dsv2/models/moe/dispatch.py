"""What a MoE layer asks of a dispatcher, which is handed in from outside with the other `Ops`.

B batch, T tokens, d model width, E experts, N = B T K token-expert pairs.
"""

from typing import Any, Protocol

from torch import Tensor

from dsv2.models.moe.router import Routing


class Dispatcher(Protocol):
    """Brings tokens to the experts that they chose, and the experts' outputs back.

    Shared experts are computed between the two calls, so that communication can hide behind them.
    """

    def dispatch(self, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Any]:
        """Return the rows (N, d) of x (B, T, d) for every pair, sorted by expert, their counts per expert (E,), and a
        ticket for `combine`."""

    def combine(self, rows: Tensor, ticket: Any) -> Tensor:
        """Return the experts' outputs (N, d), weighted by their gates and summed per token: (B, T, d)."""
