"""Small models with experts, text for them, and recorded routings whose experts are chosen by hand."""

import numpy as np
import torch

from dsv2.data.source import Batch
from dsv2.models.attention.gqa import GQA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from dsv2.routing.observed import Observed, SequenceLosses

S, T = 40, 24  # sequences, tokens
LIMITED = MoE.Config(num_experts=16, top_k=4, expert_dim=8, num_shared=2, num_devices=4, max_devices=2)


def build(
    ffn: MoE.Config | SwiGLU.Config, *, vocab: int = 32, dim: int = 16, layers: int = 2, seed: int = 0
) -> Transformer:
    """Build a model in evaluation mode, with attention of two heads."""
    attention = GQA.Config(num_heads=2, num_kv_heads=2, head_dim=8)
    config = Transformer.Config(
        vocab_size=vocab, dim=dim, num_layers=layers, attention=attention, ffn=ffn, init_std=0.3
    )
    return config.build(seed=seed).eval()


def text(vocab: int = 32, sequences: int = 6, length: int = 10) -> Batch:
    """Draw tokens at random, each with the next one as its target."""
    tokens = torch.randint(vocab, (sequences, length + 1), generator=torch.Generator().manual_seed(1))
    return Batch(tokens[:, :-1], tokens[:, 1:], None)


def observed(experts: np.ndarray, *, num_experts: int, tokens=None, domains=None, gates=None) -> Observed:
    """Make the record of one MoE layer, number 3, that chose the given experts (S, T, K)."""
    ones = np.ones(len(experts))
    gates = np.ones(experts.shape) if gates is None else gates
    return Observed(
        losses=SequenceLosses(ones, ones),
        tokens=np.zeros(experts.shape[:2], dtype=np.int64) if tokens is None else tokens,
        domains=domains,
        num_experts=num_experts,
        layers=(3,),
        experts=experts[None].astype(np.int16),
        gates=gates[None].astype(np.float32),
        entropy=np.full((1, *experts.shape[:2]), 0.25, dtype=np.float32),
        mean_affinity=np.full((1, num_experts), 1 / num_experts),
    )


def draw(*shape: int, below: int) -> np.ndarray:
    """Draw integers from 0 to `below` - 1, the same at every call."""
    return np.random.default_rng(0).integers(below, size=shape)
