"""`python -m dsv2 generate RUN --prompt TEXT`: generate text with a trained run or an imported model."""

from pathlib import Path

import torch

from dsv2.inference.generate import generate
from dsv2.training.saved import open_run


def generate_text(run: str | Path, prompt: str, *, max_new_tokens: int, temperature: float, seed: int) -> str:
    """Return the prompt with its continuation. Raises ValueError for an invalid run, prompt or setting."""
    reader = open_run(run).reader
    ids = reader.prompt(prompt)
    tokens = torch.tensor([ids], device=reader.model.embedding.device)
    continued = generate(
        reader.model,
        tokens,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        ids=reader.tokenizer.ids,
    )
    return reader.tokenizer.decode(continued[0, len(reader.tokenizer.prefix) :].tolist())
