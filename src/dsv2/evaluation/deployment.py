"""What a deployed model generates and what its cache holds, beside the model itself.

N prompts, P tokens of each.
"""

import numpy as np
from torch import Tensor

from dsv2.accounting.account import account
from dsv2.inference.deployed import Deployed, allocate_caches
from dsv2.inference.engine.engine import Engine
from dsv2.inference.engine.request import Request
from dsv2.inference.sampling import Sampling
from dsv2.models.transformer import Transformer

PROMPTS = 32  # of the first half of a validation sequence, each continued by as many tokens
TOP_K = 10  # of the whole vocabulary, the same number falls on another token far more often than models differ


def measure_deployment(model: Transformer, config: Deployed.Config, inputs: Tensor) -> dict[str, float]:
    """Continue the beginnings of sequences (B, T), at least 2 tokens, with the model and as deployed.

    Returns `deployed/agreement`, the share of tokens before the first that differs, where both draw from their TOP_K
    most likely tokens with the same random numbers; and what the cache that was used has allocated:
    `deployed/kv_bytes_per_token`, over all layers, and `deployed/kv_bits` per element, scales and offsets included.
    """
    prompts = inputs[:PROMPTS, : inputs.shape[1] // 2]
    expected, _ = _continued(model, prompts)
    answers, held = _continued(config.of(model), prompts)
    same = answers == expected
    return {
        "deployed/agreement": float(np.logical_and.accumulate(same, axis=1).mean()),
        "deployed/kv_bytes_per_token": held,
        "deployed/kv_bits": 8 * held / account(model.config).kv_elements_per_token,
    }


def _continued(model: Transformer, prompts: Tensor) -> tuple[np.ndarray, float]:
    """Return the P tokens, (N, P), by which the model continues prompts (N, P), and its cache's bytes per token."""
    rows, length = prompts.shape
    caches = allocate_caches(model, batch_size=rows, max_length=2 * length)
    engine = Engine(model, num_rows=rows, max_length=2 * length, cache=caches)
    generations = [
        engine.submit(
            Request(
                prompt=prompt,
                max_new_tokens=length,
                sampling=Sampling(temperature=1.0, top_k=TOP_K, seed=row),
            )
        )
        for row, prompt in enumerate(prompts.tolist())
    ]
    for _ in engine.run():
        pass
    return np.array([generation.tokens for generation in generations]), caches.num_bytes / (rows * 2 * length)
