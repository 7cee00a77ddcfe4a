"""Products whose weight gradients are computed later, for pipeline schedules that split the backward pass.

A schedule runs the gradients of the inputs first, since another stage waits for them, and those of the weights when the
process would be idle (section 3.1.3; arXiv 2401.10241). torch's own split runs recomputed blocks many times over; here,
backward leaves the weights' part to a queue. Other weights, of norms and routers, get their gradients at once.

N rows, I input width, O output width, E experts.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.models.ops import Ops

Task = Callable[[], None]


class Queue:
    """Weight gradients that are still to be computed, in the order of backward."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def take(self) -> Task:
        """Return what computes the gradients that are waiting, and forget them: the `dw_builder` of a stage."""
        tasks, self.tasks = self.tasks, []

        def run() -> None:
            for task in tasks:
                task()

        return run

    def ops(self, base: Ops) -> Ops:
        """Return `base` with products that leave their weights' gradients to this queue."""

        def linear(x: Tensor, w: Tensor) -> Tensor:
            return _Linear.apply(x, w, base.linear, self) if torch.is_grad_enabled() else base.linear(x, w)

        def grouped(rows: Tensor, counts: Tensor, w: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return base.grouped(rows, counts, w)
            return _Grouped.apply(rows, counts, w, base.grouped, self)

        return base._replace(linear=linear, grouped=grouped, experts=None, head=None)


def _add(w: Tensor, gradient: Tensor) -> None:
    """Add to the gradient of a weight."""
    gradient = gradient.to(w.dtype)
    w.grad = gradient if w.grad is None else w.grad.add_(gradient)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, linear: Callable[..., Tensor], queue: Queue) -> Tensor:
        ctx.save_for_backward(x)
        ctx.w, ctx.queue = w, queue  # not a copy of the weight, which recomputation would hand out
        return linear(x, w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,), w, grad = ctx.saved_tensors, ctx.w, grads[0]
        if ctx.needs_input_grad[1]:
            ctx.queue.tasks.append(lambda: _add(w, grad.flatten(0, -2).t() @ x.flatten(0, -2).to(grad.dtype)))
        dx = (grad @ w.to(grad.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, None


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, counts: Tensor, w: Tensor, grouped: Callable[..., Tensor], queue: Queue
    ) -> Tensor:
        ctx.save_for_backward(rows, counts)
        ctx.w, ctx.grouped, ctx.queue = w, grouped, queue
        return grouped(rows, counts, w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows, counts), w = ctx.saved_tensors, ctx.w
        grad = grads[0].contiguous()
        if ctx.needs_input_grad[2]:
            ctx.queue.tasks.append(lambda: _add(w, grouped_weight_gradient(rows.to(grad.dtype), counts, grad)))
        dx = ctx.grouped(grad, counts, w.transpose(1, 2)).to(rows.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


def grouped_weight_gradient(rows: Tensor, counts: Tensor, grad: Tensor) -> Tensor:
    """Return rows^T grad of each expert's block of counts (E,) rows, from rows (N, I) and grad (N, O): (E, I, O)."""
    aligned = all(width * rows.element_size() % 16 == 0 for width in (rows.shape[1], grad.shape[1]))
    if aligned and len(rows) and rows.dtype != torch.float64:
        return F.grouped_mm(rows.t(), grad, offs=counts.cumsum(0).to(torch.int32))
    sizes = counts.tolist()
    return torch.stack([a.t() @ b for a, b in zip(rows.split(sizes), grad.split(sizes), strict=True)])
