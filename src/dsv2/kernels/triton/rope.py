"""Rotation of neighbouring channels. Specification: `reference.rotate`.

B batch, T tokens, H heads, R rotated width. Bound by memory: each element is read and written once, the rotations once
for all heads of a token in a program. The gradient is the inverse rotation, so only the rotations are saved.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate(
    x,
    x_batch,
    x_token,
    x_head,
    rotations,
    r_batch,
    r_token,
    y,
    N,
    T,
    H,
    R,
    INVERSE: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotate a tile of tokens n = b T + t, heads and channels; cos and sin alternate as a pair's channels do."""
    n = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)[None, :, None]).to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, None, :]
    b, t = (n // T).to(tl.int64), (n % T).to(tl.int64)
    mask = (n < N) & (channel < R)
    turn = tl.load(rotations + b * r_batch + t * r_token + channel, mask, 0.0)
    cos, sin = tl.split(tl.reshape(turn, (TOKENS, 1, BLOCK // 2, 2)))
    if INVERSE:
        sin = -sin
    mask = mask & (head < H)
    pairs = tl.load(x + b * x_batch + t * x_token + head * x_head + channel, mask, 0.0).to(tl.float32)
    first, second = tl.split(tl.reshape(pairs, (TOKENS, HEADS, BLOCK // 2, 2)))
    rotated = tl.reshape(tl.join(first * cos - second * sin, first * sin + second * cos), (TOKENS, HEADS, BLOCK))
    tl.store(y + (n * H + head) * R + channel, rotated.to(y.dtype.element_ty), mask)


@torch.library.custom_op("dsv2_triton::rotate", mutates_args=())
def rotate(x: Tensor, rotations: Tensor, inverse: bool) -> Tensor:
    """Rotate the pairs of x (B, T, H, R) by rotations (T, R / 2) or (B, T, R / 2) complex, or back."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    batch, length, heads, width = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    turns = torch.view_as_real(rotations.to(torch.complex64).contiguous().resolve_conj())
    block = triton.next_power_of_2(width)
    together = min(triton.next_power_of_2(heads), max(1, 4096 // block))  # 4096 elements in a program, 32 in a thread
    tokens = max(1, 4096 // (block * together))
    _rotate[triton.cdiv(batch * length, tokens), triton.cdiv(heads, together)](
        *(x, *x.stride()[:3], turns, turns.stride(0) if turns.dim() == 4 else 0, turns.stride(-3)),
        *(y, batch * length, length, heads, width),
        INVERSE=inverse,
        TOKENS=tokens,
        HEADS=together,
        BLOCK=block,
        num_warps=4,
    )
    return y


@rotate.register_fake
def _(x: Tensor, rotations: Tensor, inverse: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, rotations, ctx.inverse = inputs
    ctx.save_for_backward(rotations)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return rotate(grad, *ctx.saved_tensors, not ctx.inverse), None, None


rotate.register_autograd(_differentiate, setup_context=_save)
