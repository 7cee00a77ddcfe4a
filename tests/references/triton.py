"""A Triton op beside its specification, for every layout in which its outputs' gradients can arrive."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.references.fences import DEVICE, at_offset_zero, fenced, unfenced
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32, close


def contiguous(weights: Tensor) -> Tensor:
    return weights


def expanded(weights: Tensor) -> Tensor:
    """As a plain sum hands it back: one element for all, strides of 0."""
    return weights.new_full((), 0.7).expand(weights.shape)


def transposed(weights: Tensor) -> Tensor:
    """The last dim does not lie together."""
    return weights.movedim(-1, 0).contiguous().movedim(0, -1) if weights.dim() else weights


def offset(weights: Tensor) -> Tensor:
    """Part of a wider tensor, as a join with other columns hands it back; neither end is aligned to 16 bytes."""
    if not weights.dim():
        return weights
    wider = torch.full((*weights.shape[:-1], weights.shape[-1] + 2), torch.nan, dtype=weights.dtype).to(weights.device)
    wider[..., 1:-1] = weights
    return wider[..., 1:-1]


LAYOUTS = (contiguous, expanded, transposed, offset)


def agrees(
    op: Callable[..., Tensor | tuple[Tensor, ...]],
    specification: Callable[..., Tensor | tuple[Tensor, ...]],
    *inputs: Tensor,
    tolerance: float = FLOAT32,
    layouts: Sequence[Callable[[Tensor], Tensor]] = LAYOUTS,
    frozen: Sequence[int] = (),
) -> None:
    """Both give the same values, and the same gradients for every floating input whose index is not in `frozen`.

    Gradients are those of one random weighting of the outputs, in each layout, and of each output without the others
    if there are several. The specification runs in the inputs' dtype, for half precision in float32.
    """
    half = (torch.float16, torch.bfloat16)
    wide = [x.float() if x.dtype in half else x for x in inputs]
    leaves = [fenced(x) for x in inputs]
    expected_leaves = [x.detach().clone().to(DEVICE) for x in wide]
    learned = [i for i, x in enumerate(inputs) if x.is_floating_point() and i not in frozen]
    for index in learned:
        leaves[index].requires_grad_()
        expected_leaves[index].requires_grad_()
    outs, expected = as_tuple(op(*leaves)), as_tuple(specification(*expected_leaves))
    for index, (out, other) in enumerate(zip(outs, expected, strict=True)):
        close(out, other, tolerance, f"output {index}")
    weights = [normal(*out.shape, seed=9 + index).to(out) for index, out in enumerate(outs)]
    chosen = [(layout, range(len(outs))) for layout in layouts]
    if len(outs) > 1:
        chosen += [(contiguous, [index]) for index in range(len(outs))]
    for layout, which in chosen if learned else ():
        grads = [layout(weights[index]) for index in which]
        got = gradients([outs[i] for i in which], [leaves[i] for i in learned], grads)
        wanted = [g.to(expected[i].dtype) for g, i in zip(grads, which, strict=True)]
        true = gradients([expected[i] for i in which], [expected_leaves[i] for i in learned], wanted)
        for index, gradient, true_gradient in zip(learned, got, true, strict=True):
            assert gradient.dtype == inputs[index].dtype
            close(gradient, true_gradient, tolerance, f"gradient {index}, {layout.__name__}, of outputs {list(which)}")


def as_tuple(outs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outs,) if isinstance(outs, Tensor) else tuple(outs)


def gradients(outs: list[Tensor], leaves: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outs, leaves, grads, retain_graph=True, allow_unused=True, materialize_grads=True))


def far_apart(rows: Tensor) -> Tensor:
    """The three rows (3, ...) in float16, each 2^30 elements behind the one before: the last is beyond int32."""
    with unfenced():
        memory = torch.empty(2**31 + rows[0].numel(), dtype=torch.float16, device=DEVICE)
    apart = memory.as_strided(rows.shape, (2**30, *rows[0].contiguous().stride()))
    return apart.copy_(rows)


def traces(op: torch._ops.OpOverloadPacket, *inputs: Tensor | float | int | bool | None) -> None:
    """The op's schema, shapes without data and gradients under tracing are as torch.compile needs them."""
    with at_offset_zero():
        torch.library.opcheck(op, tuple(on_device(x) if isinstance(x, Tensor) else x for x in inputs))


def on_device(x: Tensor) -> Tensor:
    return x.detach().to(DEVICE).requires_grad_(x.requires_grad)
