"""All-to-all of rows between processes, which other work can overlap with, forward and backward.

n rows sent, m rows received, R processes of the group.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Meter:
    """What this process has sent to the other processes of its group, in bytes; what stays here is free."""

    rows: int = 0  # hidden states and, in backward, their gradients
    extra: int = 0  # counts, places and gates

    @property
    def total(self) -> int:
        return self.rows + self.extra

    def clear(self) -> None:
        self.rows = self.extra = 0


class Exchange:
    """One all-to-all of rows, and that of their gradients in the opposite direction.

    `depart` starts to send and `arrive` waits for what others sent, once each; in between the process may compute. In
    backward it is the reverse: gradients leave where rows arrived, and are waited for where rows departed.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        sent: list[int],
        received: list[int],
        meter: Meter,
        kind: str = "rows",
    ) -> None:
        self.group, self.sent, self.received = group, sent, received  # rows to and from each process, (R,)
        self.meter, self.kind = meter, kind
        self.work: dist.Work | None = None
        self.buffer: Tensor | None = None

    def reversed(self) -> "Exchange":
        """Return the exchange in which every row goes back to where it came from."""
        return Exchange(self.group, self.received, self.sent, self.meter, self.kind)

    def depart(self, rows: Tensor) -> Tensor:
        """Send rows (n, ...), first those to process 0. Only `arrive` may use what is returned, (m, ...)."""
        travelling: Tensor = _Depart.apply(rows, self)
        return travelling

    def arrive(self, travelling: Tensor) -> Tensor:
        """Return the rows (m, ...) of all processes, first those of process 0."""
        arrived: Tensor = _Arrive.apply(travelling, self)
        return arrived

    def start(self, rows: Tensor, *, back: bool) -> None:
        """Start to send rows, or gradients `back` to where rows came from."""
        here, there = (self.received, self.sent) if back else (self.sent, self.received)
        rows = rows.contiguous()
        self.buffer = rows.new_empty(sum(there), *rows.shape[1:])
        self.work = dist.all_to_all_single(self.buffer, rows, there, here, group=self.group, async_op=True)
        others = len(rows) - here[dist.get_rank(self.group)]
        size = rows[:1].numel() * rows.element_size() if len(rows) else 0
        setattr(self.meter, self.kind, getattr(self.meter, self.kind) + others * size)

    def finish(self) -> Tensor:
        """Wait for what was started, and return what was received."""
        work, received, self.work, self.buffer = self.work, self.buffer, None, None
        assert work is not None, "nothing was sent"
        assert received is not None
        work.wait()
        return received


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.start(rows, back=False)
        return rows.new_zeros(()).expand(sum(exchange.received), *rows.shape[1:])  # the buffer is being written

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.exchange.finish(), None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, travelling: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange, ctx.shape = exchange, travelling.shape
        return exchange.finish()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.exchange.start(grads[0], back=True)
        return grads[0].new_zeros(()).expand(ctx.shape), None  # the gradient is on its way to where rows departed
