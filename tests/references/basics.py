"""Norm, feed-forward, loss, and what the other references are made of."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]  # by parameter name, every matrix [out, in] unless said otherwise


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """x_i w_i / sqrt(mean_j x_j^2 + eps), each row of the last axis alone; x (..., d)."""
    rows = [row / torch.sqrt(sum(value * value for value in row) / len(row) + eps) * w for row in x.reshape(-1, len(w))]
    return torch.stack(rows).reshape(x.shape)


def swiglu(x: Tensor, w_gate: Tensor, w_up: Tensor, w_down: Tensor) -> Tensor:
    """W_down (silu(W_gate x) * W_up x) with silu(z) = z / (1 + e^-z); x (d,)."""
    z = w_gate @ x
    return w_down @ (z / (1 + torch.exp(-z)) * (w_up @ x))


def halves(w_gate_up: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """W_gate and W_up of the one matrix that holds both, gate first."""
    width = w_gate_up.shape[dim] // 2
    return w_gate_up.narrow(dim, 0, width), w_gate_up.narrow(dim, width, width)


def softmax(scores: list[Tensor]) -> list[Tensor]:
    """e^s_i / sum_j e^s_j, shifted by the largest."""
    highest = max(score.item() for score in scores)
    powers = [torch.exp(score - highest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over tokens of -log softmax(logits)[target]; logits (B, T, V), targets (B, T)."""
    losses = []
    for b in range(logits.shape[0]):
        for t in range(logits.shape[1]):
            losses.append(-torch.log(softmax(list(logits[b, t]))[int(targets[b, t])]))
    return sum(losses) / len(losses)


def block(x: Tensor, norms: tuple[Tensor, Tensor], eps: float, attention: Callable, ffn: Callable) -> Tensor:
    """h = x + attention(norm(x)), then h + ffn(norm(h)): pre-norm, and each residual skips its own norm."""
    h = x + attention(rms_norm(x, norms[0], eps))
    return h + ffn(rms_norm(h, norms[1], eps))


def under(prefix: str, w: Weights) -> dict[str, Tensor]:
    """The weights of one part of a model, by their names in that part."""
    return {name.removeprefix(prefix): weight for name, weight in w.items() if name.startswith(prefix)}


def transformer(
    tokens: Tensor, w: Weights, *, num_layers: int, eps: float, attention: Callable, ffn: Callable
) -> Tensor:
    """Embedding, blocks, final norm and output head, which without a matrix of its own is the embedding.

    `attention(h, w)` and `ffn(h, w, layer)` take the weights of their own part of a layer; tokens (B, T) -> (B, T, V).
    """
    x = w["embedding"][tokens]
    for layer in range(num_layers):
        own = under(f"layers.{layer}.", w)
        parts = under("attention.", own), under("ffn.", own)
        norms = own["attention_norm.w"], own["ffn_norm.w"]
        x = block(x, norms, eps, lambda h, w=parts[0]: attention(h, w), lambda h, w=parts[1], i=layer: ffn(h, w, i))
    return rms_norm(x, w["norm.w"], eps) @ w.get("head", w["embedding"]).T
