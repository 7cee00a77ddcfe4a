"""Directories of routing traces as FLAME-MoE publishes them: float16 scores, highest first, int16 experts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dsv2.routing.traces import Chosen

STEPS, LAYERS = (4, 12, 100), (2, 10)
N, E, K = 150, 12, 3


class Made(NamedTuple):
    """What the files of a directory hold."""

    folder: Path
    tokens: np.ndarray  # (N,)
    affinities: dict[tuple[int, int], torch.Tensor]  # (1, N, E) float32, by step and layer
    choices: dict[tuple[int, int], Chosen]


def make(
    folder: Path,
    *,
    steps: Sequence[int] = STEPS,
    layers: Sequence[int] = LAYERS,
    num_tokens: int = N,
    num_experts: int = E,
    top_k: int = K,
    vocab: int = 40,
) -> Made:
    """Write traces of a random router that follows the token to some extent, in small and uneven row groups."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab, (num_tokens,), generator=generator)
    by_token = torch.randn(vocab, num_experts, generator=generator)
    affinities, choices = {}, {}
    for step in steps:
        for layer in layers:
            logits = by_token[tokens] + torch.randn(num_tokens, num_experts, generator=generator)
            scores = logits.softmax(-1).half().float()  # as they will be stored
            best = scores.topk(top_k)
            affinities[step, layer] = scores[None]
            choices[step, layer] = Chosen(best.indices.numpy().astype(np.int16), best.values.half().numpy())
            write(folder / "actives" / f"iter_{step:04d}" / f"layer_{layer:02d}.parquet", choices[step, layer])
    write_tokens(folder, tokens.numpy(), files=3)
    return Made(folder, tokens.numpy(), affinities, choices)


def write_tokens(folder: Path, tokens: np.ndarray, files: int = 1) -> None:
    """Write the samples; from two files on, the second one is empty."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    parts = np.array_split(tokens, max(files - 1, 1))
    parts[1:1] = [tokens[:0]] * (files > 1)
    for number, part in enumerate(parts):
        table = pa.table({"token_id": pa.array(part, pa.int32())})
        pq.write_table(table, folder / "samples" / f"{number}.parquet")


def write(path: Path, choice: Chosen, rows: int = 37, **options: Any) -> None:
    """Write a layer in row groups of `rows` rows."""
    columns = {"scores": list(choice.scores), "indices": list(choice.experts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows, **options)
