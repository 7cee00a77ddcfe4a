"""From logits to experts in one kernel. Specification: `reference.route_logits`.

E experts in D devices of G, K experts per token on at most M devices.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 2048  # affinities per program: 16 keys of 64 bits per thread
LAST = tl.constexpr(2**31 - 1)


@triton.jit
def _forward(
    logits,
    affinities,
    experts,
    gates,
    tokens,
    D,
    G,
    K: tl.constexpr,
    M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Choose the largest of keys that are all different, so that no comparison meets a tie.

    The upper half of a key is the affinity, whose bits have the order of the numbers since none is negative, with NaN
    above all; the lower half is the expert, counted from the end.
    """
    token = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    device, member = tl.arange(0, BLOCK_D)[None, :, None], tl.arange(0, BLOCK_G)[None, None, :]
    expert = device * G + member
    inside = (token < tokens)[:, None, None] & (device < D) & (member < G)
    at = token[:, None, None] * (D * G) + expert

    absent = tl.where(token < tokens, -float("inf"), 0.0)[:, None, None]  # a row of -inf alone would give NaN
    x = tl.load(logits + at, mask=inside, other=absent)
    x = tl.exp(x - tl.max(tl.max(x, 2), 1)[:, None, None])
    s = x / tl.sum(tl.sum(x, 2), 1)[:, None, None]
    tl.store(affinities + at, s, mask=inside)

    bits = s.to(tl.int32, bitcast=True) & LAST
    key = tl.where(inside, (bits.to(tl.int64) << 32) | (LAST - expert), -1)
    if M > 0:
        best = tl.max(key, 2)
        allowed = tl.zeros([BLOCK_T, BLOCK_D], tl.int1)
        for _ in range(M):
            first = best == tl.max(best, 1)[:, None]
            allowed |= first
            best = tl.where(first, -1, best)
        key = tl.where(allowed[:, :, None], key, -1)
    for k in range(K):
        highest = tl.max(tl.max(key, 2), 1)
        chosen = LAST - (highest & LAST)
        gate = (highest >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        tl.store(experts + token * K + k, chosen, mask=token < tokens)
        tl.store(gates + token * K + k, gate, mask=token < tokens)
        key = tl.where(key == highest[:, None, None], -1, key)


@triton.jit
def _backward(
    grad_affinities,
    grad_gates,
    affinities,
    experts,
    grad_logits,
    tokens,
    E,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    token = (tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)).to(tl.int64)
    expert = tl.arange(0, BLOCK_E)[None, :]
    at = token[:, None] * E + expert
    inside = (token < tokens)[:, None] & (expert < E)
    s = tl.load(affinities + at, mask=inside, other=0.0)
    grad = tl.load(grad_affinities + at, mask=inside, other=0.0)
    for k in range(K):
        chosen = tl.load(experts + token * K + k, mask=token < tokens, other=0)
        of_gate = tl.load(grad_gates + token * K + k, mask=token < tokens, other=0.0)
        grad += tl.where(expert == chosen[:, None], of_gate[:, None], 0.0)
    tl.store(grad_logits + at, s * (grad - tl.sum(s * grad, 1)[:, None]), mask=inside)


@torch.library.custom_op("dsv2_triton::route_logits", mutates_args=())
def route_logits(logits: Tensor, top_k: int, num_devices: int, max_devices: int) -> tuple[Tensor, Tensor, Tensor]:
    """`logits` (tokens, E) float32; returns affinities (tokens, E), experts and gates (tokens, K)."""
    logits = logits.contiguous()
    tokens, num_experts = logits.shape
    group = num_experts // num_devices
    block_d, block_g = triton.next_power_of_2(num_devices), triton.next_power_of_2(group)
    block_t = max(1, ELEMENTS // (block_d * block_g))
    affinities, experts, gates = _results(logits, top_k, num_devices, max_devices)
    _forward[(triton.cdiv(tokens, block_t),)](
        logits,
        affinities,
        experts,
        gates,
        tokens,
        num_devices,
        group,
        K=top_k,
        M=max_devices if max_devices < num_devices else 0,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
        BLOCK_G=block_g,
    )
    return affinities, experts, gates


@route_logits.register_fake
def _results(logits: Tensor, top_k: int, num_devices: int, max_devices: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen = (logits.shape[0], top_k)
    return logits.new_empty(logits.shape), logits.new_empty(chosen, dtype=torch.int64), logits.new_empty(chosen)


@torch.library.custom_op("dsv2_triton::route_logits_backward", mutates_args=())
def _route_logits_backward(grad_affinities: Tensor, grad_gates: Tensor, affinities: Tensor, experts: Tensor) -> Tensor:
    tokens, num_experts = affinities.shape
    block_e = triton.next_power_of_2(num_experts)
    block_t = max(1, ELEMENTS // block_e)
    grad_logits = torch.empty_like(affinities)
    _backward[(triton.cdiv(tokens, block_t),)](
        grad_affinities.contiguous(),
        grad_gates.contiguous(),
        affinities,
        experts,
        grad_logits,
        tokens,
        num_experts,
        K=experts.shape[1],
        BLOCK_T=block_t,
        BLOCK_E=block_e,
    )
    return grad_logits


@_route_logits_backward.register_fake
def _(grad_affinities: Tensor, grad_gates: Tensor, affinities: Tensor, experts: Tensor) -> Tensor:
    return torch.empty_like(affinities)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    affinities, experts, _ = output
    ctx.mark_non_differentiable(experts)
    ctx.save_for_backward(affinities, experts)


def _differentiate(ctx: Any, grad_affinities: Tensor, _: None, grad_gates: Tensor) -> tuple[Tensor, None, None, None]:
    return _route_logits_backward(grad_affinities, grad_gates, *ctx.saved_tensors), None, None, None


route_logits.register_autograd(_differentiate, setup_context=_save)
