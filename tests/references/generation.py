"""Generation as plainly as can be: the whole text is read for every token, one text at a time, without a cache."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

import dsv2
from dsv2.inference.engine.request import Request
from dsv2.inference.sampling import Chooser
from dsv2.models.transformer import Transformer

VOCAB = 64
ATTENTION = {
    "mla": ["model/attention=mla"],
    "mla, query latent": ["model/attention=mla", "model.attention.q_latent_dim=12"],
    "mla, YaRN": ["model/attention=mla", "model/rope=yarn", "model.rope.yarn.factor=4"],
    "mha": ["model/attention=mha"],
    "gqa": ["model/attention=gqa", "model.attention.key_norm=true"],
    "gqa, partial RoPE": ["model/attention=gqa", "model.attention.rope_dim=8"],
    "mqa": ["model/attention=mqa"],
    "hash": ["model/attention=mha", "model/ffn=hash"],
}


def small_model(*overrides: str, vocab_size: int = VOCAB) -> Transformer:
    """A model of two layers, one of them with experts, whose tokens depend on those before; in float64."""
    sizes = ["model.dim=16", "model.num_layers=2", "model.init_std=0.5"]
    config = replace(dsv2.load([*sizes, *overrides]).model, vocab_size=vocab_size)
    return config.build(seed=3).double().eval()


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random tokens."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB, (length,), generator=draw).tolist() for length in lengths]


@torch.no_grad()
def alone(model: Transformer, request: Request) -> tuple[list[int], list[float]]:
    """The tokens of a request up to a stop id, and their log-probabilities at its temperature, 1 if it is greedy."""
    chooser = Chooser([request.sampling], [request.sampling.stream(request.sample)], torch.device("cpu"))
    ids, logs, size = list(request.prompt), list[float](), len(request.prompt)
    while len(ids) < size + request.max_new_tokens and not (len(ids) > size and ids[-1] in request.stop_ids):
        logits: Tensor = model(torch.tensor([ids])).logits[0, -1]
        seen = torch.zeros(1, len(logits), dtype=torch.bool)
        seen[0, ids] = True
        token = int(chooser.choose(logits[None], np.array([len(ids) - size]), seen))
        logs.append(float((logits / (request.sampling.temperature or 1)).log_softmax(-1)[token]))
        ids.append(token)
    return ids[size:], logs
