"""Autoregressive generation with caches of latents or of keys and values.

B batch, T prompt tokens, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

from dsv2.inference.cache import allocate_model
from dsv2.inference.sampling import Ids, choose, restricted
from dsv2.models.transformer import Transformer, evaluating, require_ids, require_model, require_tokens

MOST_NEW = 1_000_000  # tokens, for which memory is allocated in advance


@overload
def generate(
    model: Transformer,
    tokens: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    ids: Ids | None = None,
) -> Tensor: ...


@overload
def generate(
    model: Transformer,
    tokens: Sequence[Tensor],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    ids: Ids | None = None,
) -> list[Tensor]: ...


def generate(
    model: Transformer,
    tokens: Tensor | Sequence[Tensor],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    ids: Ids | None = None,
) -> Tensor | list[Tensor]:
    """Continue tokens (B, T) int64 by `max_new_tokens`, to (B, T + max_new_tokens), in evaluation mode.

    A list of prompts (T_i,) of different lengths returns a list of (T_i + max_new_tokens,), each the same as alone.
    Temperature 0 is greedy; otherwise tokens are sampled from softmax(logits / temperature) with `seed`. Only `ids` are
    generated, such as those that have a token (default: all). Raises ValueError for an empty prompt and for settings
    out of range.
    """
    require_model(model)
    prompts = list(tokens) if isinstance(tokens, Iterable) else [tokens]
    if not all(isinstance(prompt, Tensor) for prompt in prompts):
        raise TypeError(
            f"tokens has type {type(tokens).__name__}: must be a tensor (B, T), or a list of tensors (T_i,)"
        )
    if not prompts or any(prompt.dim() != 1 or not len(prompt) for prompt in prompts):
        shapes = tuple(tokens.shape) if isinstance(tokens, Tensor) else [tuple(prompt.shape) for prompt in prompts]
        raise ValueError(f"tokens has shape {shapes}: must be (batch, at least 1 token), or a list of such rows")
    if not 0 <= max_new_tokens <= MOST_NEW:
        raise ValueError(f"max_new_tokens={max_new_tokens}: must be 0 or more, and at most {MOST_NEW:,}")
    for prompt in prompts:
        require_tokens(prompt[None])
        require_ids(prompt, model.config.vocab_size)
    new = list(stream_tokens(model, prompts, most=max_new_tokens, temperature=temperature, seed=seed, ids=ids))
    made = torch.stack(new, dim=1) if new else prompts[0].new_empty(len(prompts), 0)  # (B, max_new_tokens)
    if isinstance(tokens, Tensor):
        return torch.cat((tokens, made), dim=1)
    return [torch.cat(pair) for pair in zip(prompts, made, strict=True)]


@torch.no_grad()
def stream_tokens(
    model: Transformer,
    prompts: Sequence[Tensor],
    *,
    most: int,
    temperature: float = 0.0,
    seed: int = 0,
    ids: Ids | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of every prompt (T_i,) as (B,) int64, one of `ids` (default: all), `most` times."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be 0 (greedy) or more, and finite")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed}: must be 0 or more and less than 2**64")
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    tokens = torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)  # (B, T)
    device, length = tokens.device, tokens.shape[1]
    positions = torch.arange(length).expand(len(prompts), length)
    ragged = bool((lengths < length).any())
    padded = positions.where(positions < lengths[:, None], -1).to(device) if ragged else None
    caches = allocate_model(model, batch_size=len(prompts), max_length=length + most)
    generator = torch.Generator(device).manual_seed(seed)
    last = (lengths - 1).to(device)
    with evaluating(model):
        for _ in range(most):
            logits = model(tokens, positions=padded, caches=caches).logits  # (B, T, V), then (B, 1, V)
            new = choose(restricted(logits[torch.arange(len(prompts)), last], ids), temperature, generator)
            yield new
            tokens, padded, last = new[:, None], None, torch.zeros_like(last)
