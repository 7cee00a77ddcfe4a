"""Autoregressive generation of a batch of prompts with the engine.

B batch, T prompt tokens.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.inference.deployed import with_cache_of
from dsv2.inference.engine.engine import Engine
from dsv2.inference.engine.request import Request
from dsv2.inference.sampling import Ids, Sampling
from dsv2.kernels.choice import preferring
from dsv2.models.transformer import Transformer, require_ids, require_model, require_tokens

MOST_NEW = 1_000_000  # tokens, for which memory is allocated in advance
Prompts = TypeVar("Prompts", Tensor, list[Tensor])


def generate(
    model: Transformer,
    tokens: Prompts,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    ids: Ids | None = None,
    stop_ids: Sequence[int] = (),
    batch_size: int = 64,
    kv_bits: int | None = None,
) -> Prompts:
    """Continue tokens (B, T) int64 by `max_new_tokens`, to (B, T + max_new_tokens), in evaluation mode.

    A list of prompts (T_i,) of different lengths returns a list of (T_i + max_new_tokens,), each the same as alone.
    Temperature 0 is greedy; otherwise row i is drawn as sample i of `seed`, whatever the other rows are. What remains
    to be drawn from is limited by the other settings of `Sampling`.

    Compiled kernels are used where they can be had, unless others are chosen with `dsv2.kernels.choice.using`.

    Args:
        ids: The only ids that are generated, such as those that have a token (default: all).
        stop_ids: Each ends its row, as its last token; then rows differ in length, and prompts must be a list.
        batch_size: Rows that are continued at a time; the cache has room for as many.
        kv_bits: Bits per cached element, 16, 8, 6, 5, 4, 3 or 2 (default: as the model computes them).

    Raises ValueError for an empty prompt and for settings out of range.
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
    if batch_size < 1:
        raise ConfigError("batch_size", batch_size, "1 or more")
    if stop_ids and isinstance(tokens, Tensor):
        raise ConfigError("stop_ids", list(stop_ids), "none, or prompts as a list, since rows then differ in length")
    for prompt in prompts:
        require_tokens(prompt[None])
        require_ids(prompt, model.config.vocab_size)
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    deployment = with_cache_of(kv_bits)
    if max_new_tokens == 0:
        return tokens
    engine = Engine(
        deployment.of(model),
        num_rows=min(len(prompts), batch_size),
        max_length=max(map(len, prompts)) + max_new_tokens,
        ids=ids,
    )
    generations = [
        engine.submit(
            Request(
                prompt=prompt.tolist(),
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                sample=row,
                stop_ids=frozenset(stop_ids),
            )
        )
        for row, prompt in enumerate(prompts)
    ]
    with preferring("auto"):
        for _ in engine.run():
            pass
    rows = [
        torch.cat((prompt, prompt.new_tensor(generation.tokens)))
        for prompt, generation in zip(prompts, generations, strict=True)
    ]
    return torch.stack(rows) if isinstance(tokens, Tensor) else rows
