"""`python -m dsv2 generate RUN --prompt TEXT`: text out of a trained run."""

from pathlib import Path

import torch

from dsv2.inference.generate import generate
from dsv2.training.saved import load_model, load_run


def generate_text(run_dir: Path, prompt: str, *, max_new_tokens: int, temperature: float, seed: int) -> str:
    """The prompt and its continuation by a trained run, through the run's own tokenizer."""
    run = load_run(run_dir)
    source = run.data.open(
        sequence_length=run.trainer.sequence_length, seed=0, validation_tokens=run.trainer.validation_tokens
    )
    if source.tokenizer is None:
        raise ValueError(f"{run_dir}: its data are no text, so there is no tokenizer for a prompt")
    ids = source.tokenizer.encode(prompt)
    if not len(ids):
        raise ValueError("prompt='': at least one character")
    model = load_model(run_dir)
    continued = generate(model, torch.tensor([ids]), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    return source.tokenizer.decode(continued[0].tolist())
