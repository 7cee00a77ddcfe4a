"""Shapes of the compiled ops' results, for tracing without data; the sources beside this file document them."""

from typing import Any

import torch
from torch import Tensor


def _rms_norm(x: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[:-1])


def _add_rms_norm(x: Tensor, delta: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[:-1])


def _rms_norm_backward(
    grad_y: Tensor, grad_total: Tensor | None, total: Tensor, w: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(total), torch.empty_like(w)


def _swiglu(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


def _swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    return torch.empty_like(gate_up)


def _experts(x: Tensor, experts: Tensor, gates: Tensor, w_gate_up: Tensor, w_down: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((experts.numel(), w_gate_up.shape[-1]))


def _experts_backward(
    grad: Tensor, x: Tensor, experts: Tensor, gates: Tensor, w_gate_up: Tensor, w_down: Tensor, hidden: Tensor
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(part) for part in (x, gates, w_gate_up, w_down))


def _attention(
    q_nope: Tensor, q_rope: Tensor, k_nope: Tensor, k_rope: Tensor, v: Tensor, rotations: Tensor, scale: float
) -> tuple[Tensor, ...]:
    batch, length, heads, _ = q_rope.shape
    out = v.new_empty((batch, length, heads, v.shape[-1]))
    return out, v.new_empty((batch, heads, length)), torch.empty_like(q_rope), torch.empty_like(k_rope)


def _attention_backward(
    grad: Tensor,
    q_nope: Tensor,
    k_nope: Tensor,
    v: Tensor,
    rotations: Tensor,
    scale: float,
    out: Tensor,
    log_sums: Tensor,
    q_rotated: Tensor,
    k_rotated: Tensor,
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(part) for part in (q_nope, q_rotated, k_nope, k_rotated, v))


def _head_loss(
    x: Tensor, w: Tensor, targets: Tensor, ignored: int, differentiate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grads = (torch.empty_like(x), torch.empty_like(w)) if differentiate else (x.new_empty(0), x.new_empty(0))
    return x.new_empty(()), *grads


def _route_logits(logits: Tensor, top_k: int, num_devices: int, max_devices: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*logits.shape[:-1], top_k)
    return torch.empty_like(logits), logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape)


def _route_logits_backward(
    grad_affinities: Tensor | None, grad_gates: Tensor | None, affinities: Tensor, experts: Tensor
) -> Tensor:
    return torch.empty_like(affinities)


def _dequantise(codes: Tensor, ranges: Tensor, bits: int, width: int, group: int) -> Tensor:
    return codes.new_empty((*codes.shape[:-1], width), dtype=torch.float32)


def _mla_step(h: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(h)


def _gqa_step(h: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(h)


def _linear(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(w)))


FAKES = (
    _rms_norm,
    _add_rms_norm,
    _rms_norm_backward,
    _swiglu,
    _swiglu_backward,
    _experts,
    _experts_backward,
    _attention,
    _attention_backward,
    _head_loss,
    _route_logits,
    _route_logits_backward,
    _dequantise,
    _mla_step,
    _gqa_step,
    _linear,
)


def register() -> None:
    """Tell torch the shapes; the ops must be loaded."""
    for fake in FAKES:
        torch.library.register_fake(f"dsv2::{fake.__name__.removeprefix('_')}", fake)
