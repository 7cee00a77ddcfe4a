"""Attention to keys and values that are stored as packed codes: a chunk of keys at a time is decoded.

B batch, T queries, S keys, H heads, G key-value heads, W channels of a key or value.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.kernels.quantise import Bfloat16, Grouped, hadamard

CHUNK = 512  # keys decoded at a time
LOWEST = -1e30  # the largest score of a query that has seen no key yet; with -inf, differences would be NaN


class Part(NamedTuple):
    """Consecutive channels of all keys or values, in the form in which they are stored."""

    form: Grouped | Bfloat16
    held: tuple[Tensor, ...]  # (B, S, ...) each, as `form.encode` returns them


class Packed(NamedTuple):
    """Keys or values (B, S, ..., W) whose channels are stored as one part or several; float32 once decoded."""

    parts: tuple[Part, ...]
    rotated: bool = False  # whether they were multiplied by a Hadamard matrix before they were stored

    @property
    def num_keys(self) -> int:
        """S."""
        return self.parts[0].held[0].shape[1]

    def decode(self, first: int, last: int) -> Tensor:
        """Return keys `first` to `last` - 1, (B, last - first, ..., W), rotated if they are stored so."""
        parts = [part.form.decode(*(x[:, first:last] for x in part.held)) for part in self.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def packed_attention(
    products: Sequence[tuple[Tensor, Packed]],
    values: Packed,
    *,
    scale: float,
    start: int | None = None,
    visible: Tensor | None = None,
) -> Tensor:
    """Attend from queries (B, T, H, .) to the keys beside them, (B, S, G, .), and return (B, T, H, W) of the values.

    Scores are the sum of all products. Keys and values without heads, (B, S, .), serve all heads, and values that are
    keys too are decoded once. `visible` (B, T, S) bool marks the keys that each query may attend to; without it
    attention is causal, and the first query is at position `start`, by default that of the last T of S tokens.
    """
    queries = [hadamard(q) if keys.rotated else q for q, keys in products]
    (batch, length, heads, _), num_keys, device = queries[0].shape, values.num_keys, queries[0].device
    start = num_keys - length if start is None else start
    positions = torch.arange(start, start + length, device=device)
    stored = {id(held): held for held in (values, *(keys for _, keys in products))}
    # of the keys so far: the largest score, the sum of the weights relative to it, and the weighted sum of the values
    top, total, out = (torch.full((), number, device=device) for number in (LOWEST, 0.0, 0.0))
    for first in range(0, num_keys, CHUNK):
        last = min(first + CHUNK, num_keys)
        decoded = {name: _with_heads(held.decode(first, last)) for name, held in stored.items()}
        scores = torch.stack([_scores(q, decoded[id(k)]) for q, (_, k) in zip(queries, products, strict=True)]).sum(0)
        if visible is not None:
            scores = scores.masked_fill(~visible[:, None, None, :, first:last], -torch.inf)
        elif last > start + 1:
            later = torch.arange(first, last, device=device) > positions[:, None]
            scores = scores.masked_fill(later, -torch.inf)
        before, scores = top, scores * scale
        top = torch.maximum(top, scores.amax(-1, keepdim=True))  # (B, G, H / G, T, 1)
        weights, shrunk = (scores - top).exp(), (before - top).exp()
        total = total * shrunk + weights.sum(-1, keepdim=True)
        out = out * shrunk + torch.einsum("bgrts,bsgw->bgrtw", weights, decoded[id(values)].to(weights.dtype))
    out = (out / total).permute(0, 3, 1, 2, 4).reshape(batch, length, heads, -1)
    return (hadamard(out) if values.rotated else out).to(queries[0].dtype)


def _with_heads(x: Tensor) -> Tensor:
    """Return keys (B, S, W) or (B, S, G, W) as (B, S, G, W)."""
    return x.unsqueeze(2) if x.dim() == 3 else x


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Multiply queries (B, T, H, W) by keys (B, S, G, W) in at least float32: (B, G, H / G, T, S)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.einsum("btgrw,bsgw->bgrts", q.to(wide).unflatten(2, (k.shape[2], -1)), k.to(wide))
