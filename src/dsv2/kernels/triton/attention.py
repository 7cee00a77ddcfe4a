"""Causal flash attention with heads of two parts. Specification: `reference.rotary_attention`, after its rotations.

B batch, T tokens, H heads of queries, G of keys and values, J of rotated keys; D width of queries and keys without
RoPE, which may be 0, R with RoPE, V of values. Kernels read contiguous tensors (B, T, heads, width).

The products of both parts are added where the scores are accumulated: nothing is concatenated, expanded or padded in
memory. One program writes each element of a gradient, so that results repeat. Those with the most work start first.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton import device
from dsv2.kernels.triton.tiles import LOG2_E, dot, load_tile, padded, store_tile


@triton.jit
def _scores(a_nope, a_rope, b_nope, b_rope, D: tl.constexpr):
    """Return the products of rows of a with rows of b, (rows of a, rows of b) float32."""
    sums = tl.zeros((a_rope.shape[0], b_rope.shape[0]), tl.float32)
    if D > 0:
        sums = dot(a_nope, tl.trans(b_nope), sums)
    return dot(a_rope, tl.trans(b_rope), sums)


@triton.jit(do_not_specialize=["length"])
def _forward(
    q_nope, q_rope, k_nope, k_rope, v, out, log_sums, scale, length,
    H: tl.constexpr, G: tl.constexpr, J: tl.constexpr, D: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write out (B, T, H, V), and log_sums (B, H, T): of exp(scores), to base 2."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    q_row, k_row, j_row = b * length * H + h, b * length * G + h // (H // G), b * length * J + h // (H // J)
    queries = first + tl.arange(0, BLOCK_Q)
    a_nope = load_tile(q_nope + q_row * D, first, length, H * D, D, BLOCK_Q)
    a_rope = load_tile(q_rope + q_row * R, first, length, H * R, R, BLOCK_Q)
    top = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    sums = tl.zeros((BLOCK_Q, padded(V)), tl.float32)
    for diagonal in tl.static_range(2):  # keys before all queries of the block need no mask
        for start in range(first if diagonal else 0, min(first + BLOCK_Q, length) if diagonal else first, BLOCK_K):
            b_nope = load_tile(k_nope + k_row * D, start, length, G * D, D, BLOCK_K)
            b_rope = load_tile(k_rope + j_row * R, start, length, J * R, R, BLOCK_K)
            scores = _scores(a_nope, a_rope, b_nope, b_rope, D) * (scale * LOG2_E)
            if diagonal:
                keys = start + tl.arange(0, BLOCK_K)
                scores = tl.where(keys[None, :] <= queries[:, None], scores, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            shrink, weights = tl.exp2(top - higher), tl.exp2(scores - higher[:, None])
            values = load_tile(v + k_row * V, start, length, G * V, V, BLOCK_K)
            sums = dot(weights.to(values.dtype), values, sums * shrink[:, None])
            total, top = total * shrink + tl.sum(weights, 1), higher
    store_tile(out + q_row * V, sums / total[:, None], first, length, H * V, V, BLOCK_Q)
    tl.store(log_sums + (b * H + h) * length + queries, top + tl.log2(total), queries < length)


@triton.jit(do_not_specialize=["length"])
def _queries_backward(
    grad, q_nope, q_rope, k_nope, k_rope, v, out, log_sums, grad_q_nope, grad_q_rope, mean_grads, scale, length,
    H: tl.constexpr, G: tl.constexpr, J: tl.constexpr, D: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the queries, and mean_grads (B, H, T): of the weights' gradients, averaged by the weights.

    That average is out . grad; the kernel for keys and values, which runs after this one, reads it.
    """
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    q_row, k_row, j_row = b * length * H + h, b * length * G + h // (H // G), b * length * J + h // (H // J)
    queries = first + tl.arange(0, BLOCK_Q)
    a_nope = load_tile(q_nope + q_row * D, first, length, H * D, D, BLOCK_Q)
    a_rope = load_tile(q_rope + q_row * R, first, length, H * R, R, BLOCK_Q)
    grads = load_tile(grad + q_row * V, first, length, H * V, V, BLOCK_Q)
    outs = load_tile(out + q_row * V, first, length, H * V, V, BLOCK_Q)
    per_query = (b * H + h) * length + queries
    mean = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(mean_grads + per_query, mean, queries < length)
    log_sum = tl.load(log_sums + per_query, queries < length, other=0)
    sums_nope = tl.zeros((BLOCK_Q, padded(D)), tl.float32)
    sums_rope = tl.zeros((BLOCK_Q, padded(R)), tl.float32)
    for diagonal in tl.static_range(2):
        for start in range(first if diagonal else 0, min(first + BLOCK_Q, length) if diagonal else first, BLOCK_K):
            b_nope = load_tile(k_nope + k_row * D, start, length, G * D, D, BLOCK_K)
            b_rope = load_tile(k_rope + j_row * R, start, length, J * R, R, BLOCK_K)
            values = load_tile(v + k_row * V, start, length, G * V, V, BLOCK_K)
            scores = _scores(a_nope, a_rope, b_nope, b_rope, D) * (scale * LOG2_E)
            if diagonal:
                keys = start + tl.arange(0, BLOCK_K)
                scores = tl.where(keys[None, :] <= queries[:, None], scores, -float("inf"))
            weights = tl.exp2(scores - log_sum[:, None])
            grad_weights = dot(grads, tl.trans(values), tl.zeros((BLOCK_Q, BLOCK_K), tl.float32))
            grad_scores = (weights * (grad_weights - mean[:, None])).to(b_rope.dtype)
            if D > 0:
                sums_nope = dot(grad_scores, b_nope, sums_nope)
            sums_rope = dot(grad_scores, b_rope, sums_rope)
    store_tile(grad_q_nope + q_row * D, sums_nope * scale, first, length, H * D, D, BLOCK_Q)
    store_tile(grad_q_rope + q_row * R, sums_rope * scale, first, length, H * R, R, BLOCK_Q)


@triton.jit(do_not_specialize=["length"])
def _keys_backward(
    grad, q_nope, q_rope, k_nope, k_rope, v, log_sums, mean_grads, grad_k_nope, grad_k_rope, grad_v, scale, length,
    H: tl.constexpr, G: tl.constexpr, J: tl.constexpr, D: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write the gradients of keys and values; that of the rotated keys per head of keys, (B, T, G, R)."""
    first, g, b = tl.program_id(0) * BLOCK_K, tl.program_id(1), tl.program_id(2).to(tl.int64)
    k_row, j_row = b * length * G + g, b * length * J + g // (G // J)
    keys = first + tl.arange(0, BLOCK_K)
    b_nope = load_tile(k_nope + k_row * D, first, length, G * D, D, BLOCK_K)
    b_rope = load_tile(k_rope + j_row * R, first, length, J * R, R, BLOCK_K)
    values = load_tile(v + k_row * V, first, length, G * V, V, BLOCK_K)
    sums_nope = tl.zeros((BLOCK_K, padded(D)), tl.float32)
    sums_rope = tl.zeros((BLOCK_K, padded(R)), tl.float32)
    sums_v = tl.zeros((BLOCK_K, padded(V)), tl.float32)
    for h in range(g * (H // G), (g + 1) * (H // G)):
        q_row = b * length * H + h
        for diagonal in tl.static_range(2):
            after = first + BLOCK_K
            for start in range(first if diagonal else after, min(after, length) if diagonal else length, BLOCK_Q):
                queries = start + tl.arange(0, BLOCK_Q)
                a_nope = load_tile(q_nope + q_row * D, start, length, H * D, D, BLOCK_Q)
                a_rope = load_tile(q_rope + q_row * R, start, length, H * R, R, BLOCK_Q)
                grads = load_tile(grad + q_row * V, start, length, H * V, V, BLOCK_Q)
                per_query = (b * H + h) * length + queries
                log_sum = tl.load(log_sums + per_query, queries < length, other=0)
                mean = tl.load(mean_grads + per_query, queries < length, other=0)
                scores = _scores(b_nope, b_rope, a_nope, a_rope, D) * (scale * LOG2_E)
                if diagonal:
                    scores = tl.where(keys[:, None] <= queries[None, :], scores, -float("inf"))
                weights = tl.exp2(scores - log_sum[None, :])
                sums_v = dot(weights.to(grads.dtype), grads, sums_v)
                grad_weights = dot(values, tl.trans(grads), tl.zeros((BLOCK_K, BLOCK_Q), tl.float32))
                grad_scores = (weights * (grad_weights - mean[None, :])).to(a_rope.dtype)
                if D > 0:
                    sums_nope = dot(grad_scores, a_nope, sums_nope)
                sums_rope = dot(grad_scores, a_rope, sums_rope)
    store_tile(grad_k_nope + k_row * D, sums_nope * scale, first, length, G * D, D, BLOCK_K)
    store_tile(grad_k_rope + k_row * R, sums_rope * scale, first, length, G * R, R, BLOCK_K)
    store_tile(grad_v + k_row * V, sums_v, first, length, G * V, V, BLOCK_K)


def blocks(kernel: str, v: Tensor, D: int, R: int) -> dict[str, int]:
    """Return the block sizes and launch options of a kernel, "forward", "queries" or "keys", for values v (..., V).

    Chosen for D = 128, R = 64 and V = 128 by what the compiler reports: accumulators in registers, tiles in the shared
    memory of an A100 (163 KiB) or H100 (227 KiB). 128 rows are those of two of Hopper's warpgroups. Float32, which is
    multiplied without tensor cores, has the blocks that fit.
    """
    if v.element_size() > 2:
        own, other, stages = 16 if kernel == "queries" else 32, 16, 1
    else:
        own = 128 if D + R + v.shape[-1] <= 384 else 64  # rows of what a program writes
        other = 64 if kernel != "keys" and device.capability(v.device) >= 90 else 32
        stages = 3 if kernel == "forward" else 2
    q, k = (other, own) if kernel == "keys" else (own, other)
    return {"BLOCK_Q": q, "BLOCK_K": k, "num_warps": 8, "num_stages": stages}


def _sizes(q_nope: Tensor, q_rope: Tensor, k_rope: Tensor, v: Tensor) -> dict[str, int]:
    heads = {"H": q_rope.shape[2], "G": v.shape[2], "J": k_rope.shape[2]}
    return heads | {"D": q_nope.shape[3], "R": q_rope.shape[3], "V": v.shape[3]}


@torch.library.custom_op("dsv2_triton::attention", mutates_args=())
def attention(
    q_nope: Tensor, q_rope: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend causally with rotated parts: (B, T, H, V); also return log sums of exp(scores), to base 2, (B, H, T)."""
    batch, length, heads, _ = q_rope.shape
    parts = [x.contiguous() for x in (q_nope, q_rope, k_nope, k_rope, v)]
    out = v.new_empty(batch, length, heads, v.shape[-1])
    log_sums = v.new_empty(batch, heads, length, dtype=torch.float32)
    options = blocks("forward", v, q_nope.shape[3], q_rope.shape[3])
    grid = (triton.cdiv(length, options["BLOCK_Q"]), heads, batch)
    _forward[grid](*parts, out, log_sums, scale, length, **_sizes(q_nope, q_rope, k_rope, v), **options)
    return out, log_sums


@attention.register_fake
def _(q_nope: Tensor, q_rope: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = q_rope.shape
    log_sums = v.new_empty(batch, heads, length, dtype=torch.float32)
    return v.new_empty(batch, length, heads, v.shape[-1]), log_sums


@torch.library.custom_op("dsv2_triton::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, q_nope: Tensor, q_rope: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor,
    out: Tensor, log_sums: Tensor, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of all five parts. Scores are computed again from the log sums."""
    batch, length, heads, _ = q_rope.shape
    groups, shared = v.shape[2], k_rope.shape[2]
    grad, *parts = (x.contiguous() for x in (grad, q_nope, q_rope, k_nope, k_rope, v))
    grads = [torch.empty_like(x) for x in parts]
    mean_grads, sizes = torch.empty_like(log_sums), _sizes(q_nope, q_rope, k_rope, v)
    widths = q_nope.shape[3], q_rope.shape[3]
    options = blocks("queries", v, *widths)
    grid = (triton.cdiv(length, options["BLOCK_Q"]), heads, batch)
    _queries_backward[grid](grad, *parts, out, log_sums, *grads[:2], mean_grads, scale, length, **sizes, **options)
    options = blocks("keys", v, *widths)
    grid = (triton.cdiv(length, options["BLOCK_K"]), groups, batch)
    if shared < groups:  # first per head, then their sum: no atomics, whose order would vary
        grads[3] = k_rope.new_empty(batch, length, groups, k_rope.shape[3], dtype=torch.float32)
    _keys_backward[grid](grad, *parts, log_sums, mean_grads, *grads[2:], scale, length, **sizes, **options)
    if shared < groups:
        grads[3] = grads[3].unflatten(2, (shared, -1)).sum(3).to(k_rope.dtype)
    return tuple(grads)  # type: ignore[return-value]


@attention_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:5])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *parts, ctx.scale = inputs
    ctx.save_for_backward(*parts, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    return *attention_backward(grad, *ctx.saved_tensors, ctx.scale), None


attention.register_autograd(_differentiate, setup_context=_save)
