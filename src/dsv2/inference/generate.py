"""Text out of a model: token by token, on caches of latents or of keys and values.

B batch, T prompt tokens.
"""

import torch
from torch import Tensor

from dsv2.inference.cache import allocate_model
from dsv2.models.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer, tokens: Tensor, *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Tensor:
    """Continue tokens (B, T) int64 by `max_new_tokens`: (B, T + max_new_tokens), in evaluation mode.

    Temperature 0 takes the likeliest token; otherwise tokens are drawn from softmax(logits / temperature), from `seed`.
    """
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}: (batch, at least 1 token)")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: 0 or more")
    if temperature < 0:
        raise ValueError(f"temperature={temperature}: 0 (greedy) or more")
    was_training, generator = model.training, torch.Generator(tokens.device).manual_seed(seed)
    model.eval()
    caches = allocate_model(model, batch_size=len(tokens), max_length=tokens.shape[1] + max_new_tokens)
    new = tokens
    for _ in range(max_new_tokens):
        logits = model(new, caches=caches).logits[:, -1].float()  # (B, V)
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        tokens = torch.cat((tokens, new), dim=1)
    model.train(was_training)
    return tokens
