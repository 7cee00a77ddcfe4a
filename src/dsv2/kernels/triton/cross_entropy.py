"""The output head and the mean cross-entropy in one op: logits exist for one chunk of tokens at a time.

N tokens, d model width, V vocabulary. The products are torch's own, of large matrices; the kernel turns the logits of a
chunk into losses and, in the same memory, into gradients. Specification: `reference.token_nats`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 1 << 28  # logits, 512 MB in bfloat16: 2,560 tokens of 102,400, enough for products near the peak
FEWEST = 128  # rows of a chunk, a tile of a product
BLOCK = 4096  # logits at once, 16 in each thread


@triton.jit
def _losses(
    logits,
    targets,
    losses,
    V,
    IGNORED: tl.constexpr,
    DIFFERENTIATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a row's loss and, over its logits, softmax - onehot; a target that is not in the vocabulary gives NaN."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    target = tl.load(targets + row)
    known = (target >= 0) & (target < V)
    of_target = tl.load(logits + target, known, float("nan")).to(tl.float32)  # before logits turn into gradients
    column = tl.arange(0, BLOCK)
    if target == IGNORED:
        tl.store(losses + row, 0.0)
        if DIFFERENTIATE:
            for start in range(0, V, BLOCK):
                tl.store(logits + start + column, tl.zeros((BLOCK,), logits.dtype.element_ty), start + column < V)
    else:
        top = tl.full((BLOCK,), -1e38, tl.float32)  # of each lane; finite, so that no -inf is subtracted from another
        summed = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            z = tl.load(logits + start + column, start + column < V, float("-inf")).to(tl.float32)
            higher = tl.maximum(top, z)
            summed = summed * tl.exp(top - higher) + tl.exp(z - higher)
            top = higher
        highest = tl.max(top, 0)
        log_sum = highest + tl.log(tl.sum(summed * tl.exp(top - highest), 0))
        tl.store(losses + row, log_sum - of_target)
        if DIFFERENTIATE:
            for start in range(0, V, BLOCK):
                z = tl.load(logits + start + column, start + column < V, float("-inf")).to(tl.float32)
                grad = tl.exp(z - log_sum) - tl.where(start + column == target, 1.0, 0.0)
                tl.store(logits + start + column, grad.to(logits.dtype.element_ty), start + column < V)


@torch.library.custom_op("dsv2_triton::head_loss", mutates_args=())
def head_loss(
    x: Tensor, w: Tensor, targets: Tensor, ignored: int, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss of the targets (N,) int64 that are not `ignored`, float32, and its gradients.

    x (N, d) and w (V, d) have one dtype; the gradients have it too and are empty if not `differentiate`. In half
    precision logits and their gradients are rounded to it, as in plain torch; w's gradient is summed over chunks in
    float32.
    """
    count, vocabulary = len(x), len(w)
    x, w, targets = x.contiguous(), w.contiguous(), targets.contiguous()
    size = min(max(CHUNK // vocabulary // FEWEST, 1) * FEWEST, count)
    logits = torch.empty(size, vocabulary, dtype=x.dtype, device=x.device)
    losses = torch.empty(count, dtype=torch.float32, device=x.device)
    scored = (targets != ignored).sum()
    share = 1 / scored.clamp(min=1)
    grad_x = torch.empty(x.shape if differentiate else (0,), dtype=x.dtype, device=x.device)
    grad_w = torch.zeros(w.shape if differentiate else (0,), dtype=torch.float32, device=x.device)
    for start in range(0, count, max(size, 1)):
        part = slice(start, start + size)
        chunk = torch.mm(x[part], w.t(), out=logits[: len(x[part])])
        _losses[len(chunk),](
            *(chunk, targets[part], losses[part], vocabulary),
            IGNORED=ignored,
            DIFFERENTIATE=differentiate,
            BLOCK=min(triton.next_power_of_2(vocabulary), BLOCK),
            num_warps=8,
        )
        if differentiate:
            grad_x[part] = (chunk @ w).float() * share
            _add_product(grad_w, chunk.t(), x[part])
    return losses.sum() / scored, grad_x, grad_w.mul_(share).to(w.dtype)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product of any dtype to a float32 total; in half precision each product is rounded before it is added."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


@head_loss.register_fake
def _(x: Tensor, w: Tensor, targets: Tensor, ignored: int, differentiate: bool) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_w = (part.new_empty(part.shape if differentiate else (0,)) for part in (x, w))
    return x.new_empty((), dtype=torch.float32), grad_x, grad_w


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    grads = (None if grad is None else saved * grad for saved in ctx.saved_tensors)
    return *grads, None, None, None


head_loss.register_autograd(_differentiate, setup_context=_save)
