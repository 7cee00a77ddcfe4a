"""Weight gradients that wait in a queue are those of plain products."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dsv2.distributed.deferred import Queue, grouped_weight_gradient
from dsv2.inference.precision import OPS
from dsv2.models.ops import PLAIN

COUNTS = torch.tensor([2, 0, 3])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_gradients_are_those_of_plain_products(precision: str, recompute: bool) -> None:
    """Inputs' at once, weights' when the task runs; twice, so that they add up."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    base = OPS.get(precision, PLAIN)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, generator=rng, dtype=dtype, requires_grad=True)
    w, e = (nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype)) for shape in ((8, 8), (3, 8, 8)))
    results = []
    for queue in (None, Queue()):
        ops = base if queue is None else queue.ops(base)
        x.grad = w.grad = e.grad = None

        def product(x: torch.Tensor, ops=ops) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return ops.grouped(ops.linear(x, w), COUNTS, e)

        for _ in range(2):
            y = checkpoint(product, x, use_reentrant=False) if recompute else product(x)
            y.square().sum().backward()
            if queue is not None:
                task = queue.take()
                assert not queue.tasks
                task()
        results.append((y.detach(), x.grad, w.grad, e.grad))
    for plain, deferred in zip(*results, strict=True):
        torch.testing.assert_close(deferred, plain, rtol=0.02 if precision == "bf16" else 1e-5, atol=1e-4)
        assert deferred.dtype == plain.dtype


def test_weights_have_no_gradient_before_their_task() -> None:
    queue, w = Queue(), nn.Parameter(torch.ones(2, 3))
    x = torch.ones(1, 3, requires_grad=True)
    queue.ops(PLAIN).linear(x, w).sum().backward()
    assert x.grad is not None
    assert w.grad is None
    queue.take()()
    assert w.grad is not None
    assert w.grad.tolist() == [[1, 1, 1]] * 2
    with torch.no_grad():
        queue.ops(PLAIN).linear(x, w)
        queue.ops(PLAIN).grouped(x, torch.tensor([1]), torch.ones(1, 3, 2))
    assert not queue.tasks


@pytest.mark.parametrize("width", [8, 3])
def test_an_expert_without_rows_has_a_gradient_of_zero(width: int) -> None:
    rows, grad = torch.ones(5, width), torch.ones(5, 8)
    gradient = grouped_weight_gradient(rows, COUNTS, grad)
    assert gradient[1].count_nonzero() == 0
    assert gradient[0].tolist() == [[2] * 8] * width
    assert grouped_weight_gradient(rows[:0], torch.zeros(3, dtype=torch.int64), grad[:0]).shape == (3, width, 8)
